"""The Scanner port: what attachd needs from whatever knows viruses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol


class ScanError(Exception):
    """Worth a retry: nothing is known of the content. The scanner is away, broke off, or cannot be understood."""


class ScanTooLarge(ScanError):
    """Permanent: the scanner does not take so many bytes."""


class Scanner(Protocol):
    """Looks through content. Any number of calls may run at once."""

    async def scan(self, pieces: AsyncIterator[bytes]) -> str | None:
        """The name of what was found in the content, or None: nothing was.

        Holds one piece at a time, and need not take them all. May take for ever; cancelled, it
        leaves nothing open.

        Raises:
            ScanError: worth a retry. ScanTooLarge: permanent.
            What reading the pieces raises.
        """
        ...
