"""Whether a bucket can do what the adapter will ask of it, tried one operation after the other.

What is made on the way is named `doctor-...` below the prefix and removed at the end, also where a
check failed or the command was interrupted; only a kill leaves something.

Rights needed, as AWS names them: s3:ListBucket, s3:GetObject, s3:PutObject, s3:DeleteObject,
s3:AbortMultipartUpload, s3:ListBucketMultipartUploads; s3:GetLifecycleConfiguration for advice only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Final

from service.storage.s3.advice import explain, for_good
from service.storage.s3.client import S3Options, make_client
from service.storage.s3.trials import Check, Trials

__all__ = ["Check", "examine"]


@dataclass(frozen=True, slots=True)
class _Step:
    """A check: its name, the right that it needs, how it is made, and whether attachd can do without it."""

    name: str
    right: str
    run: Callable[[Trials], str | Check]
    needed: bool = True


#: in order: each may use what those before it have made
_STEPS: Final = (
    _Step("clock", "s3:ListBucket", Trials.clock),
    _Step("put", "s3:PutObject", Trials.put),
    _Step("get", "s3:GetObject", Trials.get),
    _Step("range", "s3:GetObject", Trials.range),
    _Step("checksum", "s3:PutObject", Trials.checksum),
    _Step("multipart", "s3:PutObject and s3:GetObject", Trials.multipart),
    _Step("copy", "s3:PutObject and s3:GetObject", Trials.copy),
    _Step("abort", "s3:PutObject and s3:AbortMultipartUpload", Trials.abort),
    _Step("list", "s3:ListBucket", Trials.list),
    _Step("list-multiparts", "s3:ListBucketMultipartUploads", Trials.list_multiparts),
    _Step("presign", "s3:GetObject", Trials.presign, needed=False),
    _Step("delete", "s3:DeleteObject", Trials.delete),
    _Step("abort-rule", "s3:GetLifecycleConfiguration", Trials.abort_rule, needed=False),
    _Step("latency", "s3:GetObject", Trials.latency),
)
#: in place of all checks that are not made
_REST: Final = Check("all others", None, "the bucket cannot be used")


def examine(options: S3Options, *, upload_life: float, redirect: bool) -> Generator[Check]:
    """One Check after the other. Blocks; close it to have everything removed at once.

    Args:
        upload_life: seconds that an unfinished upload may live.
        redirect: whether clients will be sent to presigned URLs.
    """
    try:
        client, public = make_client(options), make_client(options, public=True)
    except Exception as error:  # noqa: BLE001 - whatever the AWS configuration makes of it
        yield Check("bucket", False, *explain(error, bucket=options.bucket, right="s3:ListBucket"))
        yield _REST
        return
    with contextlib.closing(client), contextlib.closing(public):
        trials = Trials(client, public, options, upload_life=upload_life)
        try:
            yield from _tried(trials, options.bucket, redirect=redirect)
        finally:
            left = trials.clean()
        if left:
            advice = f"remove what begins with {trials.base}; allow s3:DeleteObject and s3:AbortMultipartUpload"
            yield Check("cleanup", False, f"{left} objects or multipart uploads are left behind", advice)


def _tried(trials: Trials, bucket: str, *, redirect: bool) -> Iterator[Check]:
    """The bucket first. After a failure that every other check would find too, there is no other."""
    try:
        yield Check("bucket", True, trials.bucket())
    except Exception as error:  # noqa: BLE001 - as below
        yield Check("bucket", False, *explain(error, bucket=bucket, right="s3:ListBucket"))
        if for_good(error):
            yield _REST
            return
    for step in _STEPS:
        try:
            found = step.run(trials)
        except Exception as error:  # noqa: BLE001 - an answer that nobody expected is what this check has found
            ends = for_good(error)
            needed = step.needed or ends or (redirect and step.name == "presign")
            words, advice = explain(error, bucket=bucket, right=step.right)
            yield Check(step.name, False if needed else None, words, advice)
            if ends:
                if step is not _STEPS[-1]:
                    yield _REST
                return
        else:
            yield found if isinstance(found, Check) else Check(step.name, True, found)
