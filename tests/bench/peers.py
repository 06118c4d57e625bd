"""Other servers, as their authors ship them; `fetching.py` gets those that this machine can have.

A peer that is not there is left out of a run, which says so.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from tests.bench.sides import ON_DISK, Does, Program, Side, store_missing, synced
from tests.e2e.process import ROOT
from tests.stores.servers import Store, open_store

#: where they are put
CACHE: Final = Path(os.environ.get("ATTACHD_BENCH_CACHE") or ROOT / ".cache" / "bench")
TUSD: Final = "github.com/tus/tusd/v2/cmd/tusd@v2.8.0"
HERE: Final = Path(__file__).parent
#: what those take part in that need several times as long as the others
SLOW: Final = frozenset({"one", "chunks", "mib-chunks", "open", "small", "head"})


class Tusd(Program):
    """The reference server, with its defaults."""

    CASES = ON_DISK | {"sizes"}
    CREATION = "/files/"
    DOWNLOAD = "/files/"

    @classmethod
    def missing(cls) -> str:
        return "" if _tusd() else "there is no tusd (ATTACHD_BENCH_TUSD, on the PATH, or by make bench ARGS=--peers)"

    def command(self) -> list[str]:
        return [_tusd(), "-host=127.0.0.1", f"-port={self.port}", "-base-path=/files/", *self.storage()]

    def storage(self) -> list[str]:
        """What says where bytes are kept."""
        return [f"-upload-dir={self.files}"]

    @property
    def does(self) -> Does:
        return Does(
            hashing="none",
            durability=synced("none", ""),
            authentication="none",
            database="none; a JSON file for each upload, and a lock file",
            logging="a line or more for each request into a file",
            processes=f"one, of as many threads as cores; {_version()}",
        )


class TusdS3(Tusd):
    """The same on a bucket of a versitygw of its own."""

    CASES = frozenset({"s3-put", "s3-chunks"})

    @classmethod
    def missing(cls) -> str:
        return super().missing() or store_missing()

    def __init__(self, directory: Path, case: str, durability: str) -> None:
        super().__init__(directory, case, durability)
        self.files = directory / "store"
        self._store: Store | None = None
        self._bucket = ""

    def __enter__(self) -> Self:
        self._store = open_store("versitygw", self.files)
        self._bucket = self._store.make_bucket()
        self.environment = self._store.environment() | {"AWS_REGION": self._store.region}
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        if self._store is not None:
            self._store.close()

    def storage(self) -> list[str]:
        assert self._store is not None
        return [f"-s3-bucket={self._bucket}", f"-s3-endpoint={self._store.endpoint}"]

    @property
    def does(self) -> Does:
        return Does(
            hashing="the store's SDK's: SHA-256 and more of each part",
            durability="the bucket's",
            authentication="none",
            database="none; an object for each upload",
            logging="a line or more for each request into a file",
            processes="one, of as many threads as cores",
        )


class TusdS3Tuned(TusdS3):
    """The same with parts of 8 MiB, as attachd's are, and without hashes."""

    def storage(self) -> list[str]:
        return [*super().storage(), f"-s3-part-size={8 * 2**20}", "-s3-disable-content-hashes=true"]

    @property
    def does(self) -> Does:
        return super().does.but(hashing="none: parts of 8 MiB, content hashes off")


class TusNode(Program):
    """@tus/server with @tus/file-store."""

    # No downloads: with Node 20 it ends itself after a few ("ReadableStream is already closed").
    CASES = SLOW
    CREATION = "/files"

    @classmethod
    def missing(cls) -> str:
        there = shutil.which("node") and (CACHE / "node" / "node_modules").is_dir()
        return "" if there else "there is no @tus/server (by make bench ARGS=--peers, with node and npm)"

    def command(self) -> list[str]:
        return ["node", str(CACHE / "node" / "server.mjs"), str(self.port), str(self.files)]

    @property
    def does(self) -> Does:
        return Does("none", synced("none", ""), "none", "none; a JSON file for each upload", "none", "one")


class Tuspyserver(Program):
    """tuspyserver under uvicorn with one worker."""

    # No downloads: neither this one nor the next has a GET.
    CASES = SLOW
    NAME = "tuspyserver"

    @classmethod
    def missing(cls) -> str:
        found = list((CACHE / "python").glob(f"lib/*/site-packages/{cls.NAME.replace('-', '_')}"))
        return "" if found else f"there is no {cls.NAME} (by make bench ARGS=--peers)"

    def command(self) -> list[str]:
        return [str(_python()), str(HERE / "asgi_peer.py"), self.NAME, str(self.port), str(self.files)]

    @property
    def does(self) -> Does:
        return Does(
            "none", synced("none", ""), "none", "none; a JSON file for each upload", "none", "one, uvloop's loop"
        )


class ResumableUpload(Tuspyserver):
    """resumable-upload under uvicorn with one worker."""

    CREATION = "/files/"
    NAME = "resumable-upload"

    @property
    def does(self) -> Does:
        return super().does.but(durability="as it comes", database="SQLite")


class Rustus(Program):
    """rustus onto a disk."""

    CASES = ON_DISK
    CREATION = "/files"
    DOWNLOAD = "/files/"
    #: bytes of a body, which it keeps in memory; as it comes it takes none above 256 KiB
    MOST_BODY = 1 << 30

    @classmethod
    def missing(cls) -> str:
        return "" if _rustus().exists() else "there is no rustus (by make bench ARGS=--peers, with cargo)"

    def command(self) -> list[str]:
        kept = [f"--data-dir={self.files}", f"--info-dir={self.files}"]
        return [str(_rustus()), "--host=127.0.0.1", f"--port={self.port}", f"--max-body-size={self.MOST_BODY}", *kept]

    @property
    def does(self) -> Does:
        return Does(
            hashing="none",
            durability=synced("none", ""),
            authentication="none",
            database="none; a JSON file for each upload",
            logging="a line for each request into a file",
            processes="one, of as many threads as cores; bodies of up to 1 GiB allowed, 256 KiB as it comes",
        )


def _tusd() -> str:
    built = CACHE / "tusd"
    return os.environ.get("ATTACHD_BENCH_TUSD") or shutil.which("tusd") or (str(built) if built.exists() else "")


def _version() -> str:
    return TUSD.rpartition("@")[2] if _tusd() == str(CACHE / "tusd") else f"the one at {_tusd()}"


def _rustus() -> Path:
    return CACHE / "rustus" / "bin" / "rustus"


def _python() -> Path:
    return CACHE / "python" / "bin" / "python"


#: by the name they have in the table
PEERS: Final[Mapping[str, type[Side]]] = {
    "tusd": Tusd,
    "rustus": Rustus,
    "tus-node": TusNode,
    "tuspyserver": Tuspyserver,
    "resumable-upload": ResumableUpload,
    "tusd-s3": TusdS3,
    "tusd-s3-tuned": TusdS3Tuned,
}
