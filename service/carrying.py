"""Hash states of unfinished blocks, for the next request of an upload: what it need not read back.

A state is used only where it is provably that of the committed bytes: the commit that ended the
request recorded the digest of the unfinished block, and the state has it still. So a state that is
lost, late or of another attempt costs a read, and never a wrong digest (design, invariant 9).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from service.hashing import BlockHasher
from service.model import Upload, UploadId

#: of about a kilobyte each; the oldest go first
_KEPT: Final = 1024


class Carried:
    """The states of one process."""

    def __init__(self) -> None:
        self._kept: OrderedDict[UploadId, BlockHasher] = OrderedDict()

    def keep(self, upload: Upload, hasher: BlockHasher) -> None:
        """The request that hashed the upload up to its committed offset is over; the state is given up."""
        if hasher.tail(upload.offset) is None:
            return
        self._kept[upload.id] = hasher
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def take(self, upload: Upload, tail: bytes | None) -> BlockHasher | None:
        """The state of the upload's unfinished block, if it has the digest that was committed."""
        hasher = self._kept.pop(upload.id, None)
        if hasher is None or tail is None or hasher.tail(upload.offset) != tail:
            return None
        return hasher
