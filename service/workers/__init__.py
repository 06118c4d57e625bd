"""The processes of a service, and how they live and end together.

    attachd serve ─┬─ one process: `single`
                   └─ `supervisor` ── `nursery` ─┬─ `worker` 0
                                                 ├─ `worker` 1 …

A supervisor serves no uploads. It claims what the service has once (directory, addresses, keys,
database), starts the workers, replaces one that dies or hangs, owns the operations listener and
answers there for all of them. Workers know nothing of each other: what they share is the database,
the storage and the port, so an upload's next request may come to any of them.

Between the supervisor and each worker is a socket pair (`channel`), over which short messages go
both ways. Its end is how both learn of the other's death, whatever killed it: a worker whose
supervisor is gone stops as if it had been told to. The supervisor passes signals on as messages,
so one that reaches the whole process group and one that reaches the supervisor do the same.

When a worker has died, its leases are given back by another one at once: nobody waits for their
term to run out. Its gauges are forgotten and its counters kept (`metrics`).

An upgrade starts a second service `--beside` the first and then stops the first, which sees that
it has been succeeded and takes no new connection from that moment on.
"""
