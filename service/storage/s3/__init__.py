"""Files in an S3-compatible bucket.

Bytes leave from memory, in parts of one size cut by offset, as soon as a part is full, and where
that can be from the buffers they were received into; nothing is written to disk here. What does
not fill a part when a request ends becomes a tail segment, an object that is written once; a later
request goes on behind it, and when the part is full it goes up whole and the segments are dropped.
`naming` tells what lies where.

    client    the boto3 client, and what its errors mean
    calls     every call, in a thread, counted, tried again where that helps
    memory    the one limit for bytes that wait
    appender  a request's bytes become parts and segments
    segments  tail segments: stored, fetched, joined, dropped
    completing, joining   from a ledger to one object, and several to one
    leftovers what lies in the bucket that nobody needs; listed, removed
    reading   ranges, one piece ahead
    probing   what the store can
    owning    which database the place belongs to
    doctor    what an operator should know

Guarantees. The ledger in the metadata store says which parts and segments count, with ETag, digest
and epoch; no listing and no error of the store ever adds to an offset. A tail segment goes only
after the part that swallows it is committed. An object becomes a file only by the ledger that was
committed, and its size is looked at before anyone may read it. A writer that was asleep looks at
its lease before each part, and everything else it makes has a name of its own; a part that it
replaces all the same makes completion fail, never a mix (lesson L2).

An object `attachd-owner` below the prefix names the database whose files these are; with another
one nothing is read, written or removed.

Not guaranteed. Bytes of an unfinished part are in memory for up to 30 s, unacknowledged. What a
process left that died is removed when its upload ends, or by the sweep, an hour later at the
earliest. A rule of the bucket that aborts multipart uploads must leave them alone for longer than
`ATTACHD_UPLOAD_LIFE`: one that vanished fails its upload (lesson C2).

Rights needed below the prefix: s3:PutObject, s3:GetObject, s3:DeleteObject,
s3:AbortMultipartUpload; on the bucket: s3:ListBucket, s3:ListBucketMultipartUploads. Only
`examine`, which serves a command alone, needs s3:ListMultipartUploadParts.
"""

from service.storage.s3.adapter import S3Storage
from service.storage.s3.client import S3Options, options_of
from service.storage.s3.memory import Memory

__all__ = ["Memory", "S3Options", "S3Storage", "options_of"]
