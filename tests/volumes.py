"""File systems of a test's own: a small one, and one that can be read only."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_volume(folder: Path, size: str) -> Iterator[Path]:
    """A mounted volume of that size, as `mount` spells it; the test is skipped where mounting is not allowed."""
    folder.mkdir()
    if not _mounted("-t", "tmpfs", "-o", f"size={size}", "none", str(folder)):
        pytest.skip("mounting a small volume needs rights that this user has not")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def read_only(*folders: Path) -> Iterator[None]:
    """Nothing can be made, opened for writing or removed below the folders; what is open already goes on.

    By a mount where that is allowed, by permissions where the user is not root; else the test is skipped.
    """
    made: list[Path] = []
    try:
        for folder in folders:
            if _mounted("--bind", str(folder), str(folder)):
                made.append(folder)
                if not _mounted("-o", "remount,bind,ro", str(folder)):
                    break
        if len(made) == len(folders):
            yield
            return
    finally:
        for folder in made:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    if os.geteuid() == 0:
        pytest.skip("making a folder read-only needs rights that this user has not")
    with _without_permission(*folders):
        yield


def _mounted(*arguments: str) -> bool:
    mount = shutil.which("mount")
    return mount is not None and not subprocess.run([mount, *arguments], capture_output=True, check=False).returncode


@contextmanager
def _without_permission(*folders: Path) -> Iterator[None]:
    paths = [path for folder in folders for path in (folder, *folder.rglob("*"))]
    modes = {path: path.stat().st_mode for path in paths}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    try:
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
