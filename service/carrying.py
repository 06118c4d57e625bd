"""What one request of an upload leaves for the next: its hash state, and what it committed last.

A hash state is used only where it is provably that of the committed bytes: the commit that ended
the request recorded the digest of the unfinished block, and the state has it still; or a commit
that is made only if nothing has changed since (`onward`). So a state that is lost, late or of
another attempt costs a read, and never a wrong digest (design, invariant 9).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from service.hashing import BlockHasher
from service.model import Part, Upload, UploadId

#: of about two kilobytes each; the oldest go first
_KEPT: Final = 1024
#: a longer ledger is not kept, which only costs reading it
_MOST_PARTS: Final = 8


@dataclass(frozen=True, slots=True)
class Left:
    """How a request left an upload."""

    #: as it was committed, by this process; without what a client wrote about it, which may be long
    upload: Upload
    #: of the bytes up to its offset
    hasher: BlockHasher
    #: what was committed of it; None: not known, or to be looked at
    ledger: tuple[Part, ...] | None


class Carried:
    """The uploads that one process wrote last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[UploadId, Left] = OrderedDict()

    def keep(self, upload: Upload, hasher: BlockHasher, ledger: tuple[Part, ...] | None = None) -> None:
        """The request that hashed the upload up to its committed offset is over; the state is given up.

        Args:
            ledger: told if the request ended whole, and the lease is given back.
        """
        if hasher.end != upload.offset:
            return
        short = ledger is not None and len(ledger) <= _MOST_PARTS
        if (upload.metadata, upload.filename, upload.media_type, upload.concat) != (None, None, None, None):
            upload = upload.with_(metadata=None, filename=None, media_type=None, concat=None)
        self._kept[upload.id] = Left(upload, hasher, ledger if short else None)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def take(self, upload: Upload, tail: bytes | None) -> BlockHasher | None:
        """The state of the upload's unfinished block, if it has the digest that was committed."""
        left = self._kept.pop(upload.id, None)
        if left is None or tail is None or left.hasher.tail(upload.offset) != tail:
            return None
        return left.hasher

    def left(self, upload_id: UploadId) -> Left | None:
        """How the last request left it, if that was this process's and ended whole. Others may have come since."""
        left = self._kept.get(upload_id)
        return None if left is None or left.ledger is None else left

    def take_left(self, left: Left) -> bool:
        """Whether nobody has taken it meanwhile; the caller has it now."""
        if self._kept.get(left.upload.id) is not left:
            return False
        del self._kept[left.upload.id]
        return True
