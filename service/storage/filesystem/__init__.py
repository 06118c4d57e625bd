"""Storage on a local directory.

Layout
    `root/uploads/<2>/u_….e<epoch>`     a *segment*: bytes of an unfinished upload
    `root/uploads/<2>/u_….e<epoch>.join` a concatenation under way, in no ledger yet
    `root/files/<2>/u_…`                a finished file
    <2> are the first two characters of the random part of the upload id. Names come from upload
    ids and epochs alone.

Mechanism
    An upload is usually one segment, and its ledger one part that grows. A segment is written by
    whoever holds its `flock`, and only at its end: a writer that finds it locked starts a fresh
    segment instead. So does one that finds it longer than its own ledger says, unless its fence
    holds once it has the lock: then nobody newer was here, and the surplus is nobody's. So no
    byte that a ledger names is ever written again, and neither a writer that was asleep, nor one
    that comes late with an old ledger, can change what a newer one reads. No state is kept beside
    the bytes for that.
    `complete` lengthens the first segment by the others (the kernel copies), cuts off what lies
    behind the ledger's end, and renames it to be the file.
    `put` makes a small file of an upload that is in no ledger and no record yet: a segment that gets
    the file's name as a second one. The first one is the mark by which such a file is known for
    one without a record, until there is one.

Guarantees
    Durability `complete`: data, then the rename, then both directories are synced before
    `complete` returns. `always`: also before each receipt. `none`: left to the kernel.
    Under `complete` a crash of the machine may therefore shorten or empty the segments of
    unfinished uploads, or take them away: `salvage` tells what is left to be checked.
    A crash at any system call leaves something that the same call, made again, turns into the
    same result. A directory that vanished (an unmounted disk) is worth a retry and never read as
    lost bytes.

Not guaranteed
    A writer fenced off may leave a segment that nobody needs; `complete` and `discard` remove
    those they see. Locks are `flock`: one machine, and no network file system that fakes it.

Rights needed
    Read, write and search on `root`, by every worker process under the same user.
"""

from service.storage.filesystem.adapter import FilesystemStorage
from service.storage.filesystem.salvaging import sync_unfinished

__all__ = ["FilesystemStorage", "sync_unfinished"]
