"""What a command that talks to the service over a bad line needs: causes, pauses and a bar."""

from __future__ import annotations

import random
import sys
import time
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

if TYPE_CHECKING:
    from collections.abc import Callable

    import requests

#: attempts in a row that move no byte before a command gives up
ATTEMPTS: Final = 10
#: seconds: first and longest pause between attempts
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
#: seconds to connect, and without a byte: longer than the service's own idle limit, so that its answer comes first
TIMEOUTS: Final = (10.0, 75.0)
#: contract, section 11: what is worth a retry below 500; 460 is a checksum: the line was at fault, not the file
_RETRYABLE: Final = frozenset({408, 409, 423, 429, 460})


class Trouble(Exception):
    """One request did not succeed. `status` is None where no answer came, or not all of it."""

    def __init__(self, status: int | None, detail: str, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.retry_after = retry_after

    @property
    def retryable(self) -> bool:
        return self.status is None or self.status in _RETRYABLE or self.status >= 500


class GaveUp(Exception):
    """Every attempt was used up, or the answer was final; the text says why."""


class Patience:
    """How often and how fast to try again.

    Args:
        retrying: told why, before each pause.
        attempts: how many in a row may fail without progress.
    """

    def __init__(
        self,
        *,
        retrying: Callable[[str], None] = lambda _: None,
        sleep: Callable[[float], None] = time.sleep,
        attempts: int = ATTEMPTS,
    ) -> None:
        self._retrying = retrying
        self._sleep = sleep
        self._attempts = attempts
        self._failures = 0

    def progress(self) -> None:
        """Something moved: the count of failures begins again."""
        self._failures = 0

    def after(self, trouble: Trouble) -> None:
        """Returns when it is time for the next attempt. Raises GaveUp: there is none."""
        if not trouble.retryable:
            raise GaveUp(f"refused ({trouble})") from trouble
        self._failures += 1
        if self._failures >= self._attempts:
            raise GaveUp(f"gave up after {self._failures} attempts without progress: {trouble}") from trouble
        self._retrying(str(trouble))
        self._sleep(pause(self._failures, trouble.retry_after))


def pause(failures: int, retry_after: float | None) -> float:
    """Seconds before the next attempt: doubling, with jitter, and never sooner than the server asks."""
    ceiling = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (failures - 1))
    # Spread over the upper half: clients cut at the same moment do not come back at the same moment.
    return max(random.uniform(ceiling / 2, ceiling), min(retry_after or 0.0, LONGEST_PAUSE))  # noqa: S311


def cause(error: BaseException) -> str:
    """The innermost reason in a few words; never the URL, which carries the token."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__


def refused(response: requests.Response) -> Trouble:
    """The trouble that an answer tells of, on one line: problem+json where there is any."""
    try:
        problem = response.json()
        words = str(problem.get("detail") or problem["title"])
    except (ValueError, KeyError, AttributeError):
        words = response.reason or "no reason given"
    wait = response.headers.get("Retry-After", "")
    return Trouble(
        response.status_code,
        " ".join(f"{response.status_code}: {words}".split()),
        float(wait) if wait.isascii() and wait.isdigit() else None,
    )


def bar() -> Progress:
    """A bar on standard error, silent where that is not a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
        # it would send what is printed meanwhile to the bar's console, past a file that is to have it
        redirect_stdout=sys.stdout.isatty(),
    )
