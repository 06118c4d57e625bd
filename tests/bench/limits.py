"""The machine's own limits as sides: what no server with the same copies can be faster than.

Of an upload there are two halves, receiving and writing, and the whole with its hash, once in
Python and once in C, so that one sees what the interpreter adds to a loop that does nothing else.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final, Self

from tests.bench.peers import CACHE
from tests.bench.sides import Does, Module, Program, synced

SOURCE: Final = Path(__file__).with_name("limit.c")
#: where `--peers` puts xxhash.h, should the system have none
INCLUDE: Final = CACHE / "include"
#: for this machine, so that nothing that its processor can do is left out
COMPILE: Final = ("cc", "-O3", "-march=native", f"-I{INCLUDE}")


class Limit(Module):
    """The whole in Python: `limit.py`."""

    CASES = frozenset({"one", "chunks", "mib-chunks", "download"})
    NAME = "limit"
    WHAT = "all"

    def __init__(self, directory: Path, case: str, durability: str) -> None:
        super().__init__(directory, case, durability)
        self.arguments = [self.WHAT]

    @property
    def does(self) -> Does:
        return Does(
            hashing="XXH3-128 of each body",
            durability=synced(self.durability, "data before the last answer"),
            authentication="none",
            database="none",
            logging="none",
            processes="one blocking loop in Python, one connection at a time",
        )


class ReceiveOnly(Limit):
    """Bytes are received and dropped."""

    CASES = frozenset({"one"})
    WHAT = "receive"

    @property
    def does(self) -> Does:
        return super().does.but(hashing="none", durability="none: what has been received is dropped")


class WriteOnly(Limit):
    """Bytes are written that nobody has sent: of its requests only the heads are sent."""

    CASES = frozenset({"one"})
    WHAT = "write"

    @property
    def does(self) -> Does:
        return super().does.but(hashing="none: as many bytes are written, and none received")


class LimitC(Program):
    """The whole in C: `limit.c`, compiled when it is started."""

    CASES = frozenset({"one", "chunks", "mib-chunks", "sizes"})

    @classmethod
    def missing(cls) -> str:
        return compilable()

    def __init__(self, directory: Path, case: str, durability: str) -> None:
        super().__init__(directory, case, durability)
        self._program = directory / "limit"

    def __enter__(self) -> Self:
        self._program.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([*COMPILE, "-o", str(self._program), str(SOURCE)], check=True)
        return super().__enter__()

    def command(self) -> list[str]:
        return [str(self._program), str(self.port), str(self.files), self.durability]

    @property
    def does(self) -> Does:
        return Does(
            hashing="XXH3-128 of each body, with what this processor can do",
            durability=synced(self.durability, "data before the last answer"),
            authentication="none",
            database="none",
            logging="none",
            processes="one blocking loop in C, one connection at a time",
        )


def compilable() -> str:
    """Why the C loop cannot be compiled here; empty if it can."""
    if not shutil.which("cc"):
        return "there is no C compiler (cc)"
    with tempfile.TemporaryDirectory() as directory:
        command = [*COMPILE, "-o", str(Path(directory) / "limit"), str(SOURCE)]
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if "fatal error" in tried.stderr and "xxhash.h" in tried.stderr:
        return "there is no xxhash.h (libxxhash-dev, or by make bench ARGS=--peers)"
    return f"limit.c does not compile: {tried.stderr.strip()}" if tried.returncode else ""
