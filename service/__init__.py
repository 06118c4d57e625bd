"""attachd: resumable uploads for chat attachments.

The idea in one line: request -> Intent -> decide -> Decision -> effects -> Outcome -> response.

Layers, lowest first; an import may only point down or sideways, and between adapters not even that
(`tests/unit/test_layers.py` reads every import and says why one is wrong):

0. pure: `model`, `hashing`, `sniffing`; `links` with `claims` and `keyset`; `settings` with
   `setting_types`, `endpoints` and `units`; `protocol/`; `storage/parts`; what the control API takes and gives
   (`control_models`, `control_routes`), and `openapi`, which describes it. No clocks, no randomness, no I/O, no
   `async`: the time and new ids are arguments.
1. ports: `storage/base` with its `wrappers`, `metadata/base`, `metadata/control` and `metadata/outbox`, `scanner`,
   `outward`, `leases`, `events`, `changes`, `metrics`, `clock`. What the use-cases need, said without naming who
   provides it.
2. adapters: `storage/filesystem/`, `storage/s3/`, the rest of `metadata/`, `webhooks`, `keyfile`, `clamd`. One
   third party each.
3. use-cases: what happens, in which order. `uploads` is what a client does: `gate` checks its link,
   `at_once` takes a small file in one step, `claiming` makes what the link allows, `receiving` turns a
   body into committed bytes, `finishing` makes the file, once `scanning` has let it pass. `settling` and
   `janitor` are what happens without a client, `tasks` what outlives one; `hooks` asks a backend for
   leave, `delivery` tells it what happened; `lookup` is an upload as clients see it, `downloads` and
   `files` what becomes of the bytes. For backends: `found` is what an issuer sees, `minting` signs links,
   `once` makes requests repeatable, `control_files`, `erasing`, `revocations` and `feed` are what they say.
4. web: `web/`. Requests are handled here and nowhere else.
5. wiring: `runtime`, `control_wiring`, `starting`, `allocator`, `logs`, `commands/`, `cli`. Everything may be
   named here; the environment is read in `cli` only.

The rules, lessons, invariants and contract sections that comments and tests cite are in docs/rules.md.
"""

__version__ = "0.1.0"
