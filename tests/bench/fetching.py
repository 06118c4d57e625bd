"""`python -m tests.bench --peers`: gets the other servers that this machine can have, and what the C loop needs.

Each comes by the client of its own registry, into `peers.CACHE`. Nothing is installed elsewhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Final

from tests.bench.limits import INCLUDE, compilable
from tests.bench.peers import CACHE, TUSD

RUSTUS: Final = "rustus@0.5.10"
PYTHON_PACKAGES: Final = ("tuspyserver==4.4.3", "resumable-upload==0.3.0", "uvicorn[standard]>=0.30")
NODE: Final = Path(__file__).with_name("node")


def get() -> None:
    """Gets them; one that cannot be had is named, and is no failure."""
    CACHE.mkdir(parents=True, exist_ok=True)
    ways: dict[str, Callable[[], None]] = {
        "tusd": _tusd,
        "rustus": _rustus,
        "@tus/server": _tus_node,
        "tuspyserver, resumable-upload": _python,
        "the loop in C": _xxhash_header,
    }
    for name, way in ways.items():
        try:
            way()
        except (OSError, subprocess.CalledProcessError, LookupError, tarfile.TarError) as error:
            print(f"{name}: not to be had here: {error}", file=sys.stderr)
        else:
            print(f"{name}: there")


def _tusd() -> None:
    _do("go", "install", TUSD, GOBIN=str(CACHE))


def _rustus() -> None:
    # The versions it was released with; newer ones of what it is made of need not go together.
    _do("cargo", "install", "--locked", "--root", str(CACHE / "rustus"), RUSTUS)


def _tus_node() -> None:
    to = CACHE / "node"
    to.mkdir(exist_ok=True)
    for name in ("package.json", "server.mjs"):
        shutil.copy(NODE / name, to / name)
    _do("npm", "install", "--prefix", str(to), "--no-audit", "--no-fund")


def _python() -> None:
    to = CACHE / "python"
    _do(sys.executable, "-m", "venv", str(to))
    _do(str(to / "bin" / "python"), "-m", "pip", "install", "--quiet", *PYTHON_PACKAGES)


def _xxhash_header() -> None:
    """`xxhash.h` as our own xxhash is made of it, where the system has none."""
    if "xxhash.h" not in compilable():
        return
    with tempfile.TemporaryDirectory() as directory:
        package = f"xxhash=={version('xxhash')}"
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "xxhash")
        _do(*pip, "--dest", directory, package)
        (archive,) = Path(directory).glob("*.tar.gz")
        with tarfile.open(archive) as files:
            header = next((file for file in files if file.name.endswith("/deps/xxhash/xxhash.h")), None)
            found = files.extractfile(header) if header else None
            if found is None:
                raise LookupError(f"no xxhash.h in {archive.name}")
            INCLUDE.mkdir(exist_ok=True)
            (INCLUDE / "xxhash.h").write_bytes(found.read())
    if why := compilable():
        raise LookupError(why)


def _do(*command: str, **environment: str) -> None:
    subprocess.run(command, env=os.environ | environment, check=True)
