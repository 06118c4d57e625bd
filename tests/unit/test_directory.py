"""Who may use a data directory, and what is known of the others who do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from service.directory import LOCK_NAME, SERVICES_NAME, DataDirectory
from service.starting import CannotStart


def started(path: Path, *, beside: bool = False) -> DataDirectory:
    """A service that serves."""
    directory = DataDirectory(path)
    directory.take(beside=beside)
    directory.settle()
    directory.serves()
    return directory


@pytest.fixture
def first(tmp_path: Path) -> Iterator[DataDirectory]:
    """A service on the directory."""
    with closing(started(tmp_path)) as directory:
        yield directory


def test_a_second_start_is_refused_whatever_the_first_does(tmp_path: Path) -> None:
    """While it starts, serves and drains."""
    with closing(DataDirectory(tmp_path)) as first:
        assert first.take()
        for step in (lambda: None, first.settle, first.serves, first.drains):
            step()
            with pytest.raises(CannotStart, match="another attachd runs on it"):
                DataDirectory(tmp_path).take()
    with closing(started(tmp_path)) as second:
        assert second.drains() is False


def test_a_refused_start_leaves_nothing(first: DataDirectory, tmp_path: Path) -> None:
    """Neither a file nor a lock: the first service goes on as the only one."""
    with pytest.raises(CannotStart):
        DataDirectory(tmp_path).take()
    assert first.others() is False
    assert len(os.listdir(tmp_path / SERVICES_NAME)) == 1


def test_one_beside_another_is_not_alone(first: DataDirectory, tmp_path: Path) -> None:
    """Each knows of the other, until that has ended."""
    with closing(DataDirectory(tmp_path)) as second:
        assert second.take(beside=True) is False
        assert first.others()
        assert second.others()
    assert first.others() is False


def test_one_beside_nobody_is_alone(tmp_path: Path) -> None:
    """`--beside` permits another service and needs none."""
    with closing(DataDirectory(tmp_path)) as directory:
        assert directory.take(beside=True)


def test_one_beside_a_start_waits_for_its_end(tmp_path: Path) -> None:
    """The first one has the directory to itself until it has settled."""
    first, second = DataDirectory(tmp_path), DataDirectory(tmp_path)
    assert first.take()
    with closing(first), closing(second), ThreadPoolExecutor() as pool:
        taking = pool.submit(second.take, beside=True)
        while sum(name.endswith(".starting") for name in os.listdir(tmp_path / SERVICES_NAME)) < 2:
            time.sleep(0.001)
        assert not taking.done()
        first.settle()
        assert taking.result(30) is False


def test_one_beside_a_start_that_fails_is_alone(tmp_path: Path) -> None:
    """So it does what the failed one left to do."""
    first, second = DataDirectory(tmp_path), DataDirectory(tmp_path)
    assert first.take()
    with closing(second), ThreadPoolExecutor() as pool:
        taking = pool.submit(second.take, beside=True)
        first.close()
        assert taking.result(30) is True


def test_new_connections_are_left_to_one_that_serves(first: DataDirectory, tmp_path: Path) -> None:
    """A successor that still starts, drains itself, or has ended is none."""
    with closing(DataDirectory(tmp_path)) as second:
        second.take(beside=True)
        second.settle()
        assert first.drains() is False
        second.serves()
        assert first.drains() is True
        assert second.drains() is False
        assert first.drains() is False
        second.serves()
    assert first.drains() is False


def test_one_that_was_replaced_is_no_obstacle(first: DataDirectory, tmp_path: Path) -> None:
    """Its successor is gone, and it still drains: a start need not say that it comes beside it, and is not alone."""
    with closing(started(tmp_path, beside=True)):
        assert first.drains() is True
    with closing(DataDirectory(tmp_path)) as third:
        assert third.take() is False
        assert third.others()


def test_words_of_a_later_version_are_no_obstacle(first: DataDirectory, tmp_path: Path) -> None:
    """An upgrade may bring a service that says more than this one knows."""
    with closing(started(tmp_path, beside=True)):
        (second,) = (path for path in (tmp_path / SERVICES_NAME).iterdir() if not path.name.startswith(first._token))
        second.rename(second.with_suffix(".weeding"))
        assert first.others()
        assert first.drains() is False


def test_L4_what_a_killed_service_left_is_nobody(tmp_path: Path) -> None:
    """Its file is removed by the next start, which is alone."""
    program = "import os, sys, tests.unit.test_directory as t; t.started(t.Path(sys.argv[1])); os._exit(0)"
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)
    assert len(os.listdir(tmp_path / SERVICES_NAME)) == 1
    with closing(DataDirectory(tmp_path)) as directory:
        assert directory.take()
        assert len(os.listdir(tmp_path / SERVICES_NAME)) == 1


def test_L4_a_process_that_a_killed_service_left_is_somebody(tmp_path: Path) -> None:
    """A start beside workers that still drain is neither refused nor alone; after them it is alone again."""
    first = started(tmp_path)
    worker = os.dup(first.lock)
    first.close()
    with closing(DataDirectory(tmp_path)) as second:
        assert second.take() is False
    os.close(worker)
    with closing(DataDirectory(tmp_path)) as third:
        assert third.take()


def test_L4_of_many_starts_at_once_one_is_alone(tmp_path: Path) -> None:
    """Many that take, settle and go at the same time: never two have it, and always one gets it in the end."""
    alone, most, lock = 0, 0, threading.Lock()
    taken = 0

    def run() -> None:
        nonlocal alone, most, taken
        for _ in range(40):
            directory = DataDirectory(tmp_path)
            try:
                is_alone = directory.take()
            except CannotStart:
                continue
            with lock:
                alone += 1
                taken += is_alone
                most = max(most, alone)
            directory.settle()
            directory.serves()
            with lock:
                alone -= 1
            directory.close()

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert taken
    with closing(DataDirectory(tmp_path)) as last:
        assert last.take()


def test_a_directory_that_is_gone_is_no_endless_search(first: DataDirectory, tmp_path: Path) -> None:
    """Where nothing can be told, what is safe is said: others may be there, and nobody takes over."""
    (tmp_path / SERVICES_NAME).rename(tmp_path / "elsewhere")
    assert first.others() is True
    assert first.drains() is False


def test_what_is_made_is_for_the_owner_alone(tmp_path: Path) -> None:
    """The directory and what is in it: keys, the state, files."""
    with closing(started(tmp_path / "new")):
        for path in (tmp_path / "new", tmp_path / "new" / SERVICES_NAME):
            assert path.stat().st_mode & 0o077 == 0
        assert (tmp_path / "new" / LOCK_NAME).stat().st_mode & 0o077 == 0
