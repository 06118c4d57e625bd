"""Where workers count: in shared memory, or else beside the data, and never where there is no room."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.workers import counting
from service.workers.counting import NAME, counting_in, shared_prefix
from tests.volumes import small_volume


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands for the machine's shared memory."""
    place = tmp_path / "shm"
    place.mkdir()
    monkeypatch.setattr(counting, "SHARED_MEMORY", place)
    return place


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory."""
    place = tmp_path / "data"
    place.mkdir()
    return place


def test_workers_count_in_shared_memory(shared: Path, data: Path) -> None:
    """In a directory of the run's own, with files for each of them, that nobody else may open."""
    made = counting_in(data, 2, alone=True)
    assert made.parent == shared
    assert made.stat().st_mode & 0o077 == 0
    assert {path.name.rpartition("_")[2] for path in made.iterdir()} == {"0.db", "1.db"}


def test_a_start_that_is_alone_removes_what_killed_runs_left(shared: Path, data: Path, tmp_path: Path) -> None:
    """Of this directory, and no other's; one that starts beside another removes nothing."""
    (tmp_path / "other").mkdir()
    other = counting_in(tmp_path / "other", 1, alone=True)
    first = counting_in(data, 1, alone=True)
    second = counting_in(data, 1, alone=False)
    assert first.exists()
    third = counting_in(data, 1, alone=True)
    assert set(shared.iterdir()) == {other, third}
    assert second != third


def test_without_shared_memory_they_count_beside_the_data(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a system has none."""
    monkeypatch.setattr(counting, "SHARED_MEMORY", tmp_path / "none")
    assert counting_in(data, 1, alone=True).parent == data / NAME


def test_shared_memory_without_room_is_left_as_it_was(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers often have little: what was begun there is removed, and the data's disk is taken."""
    with small_volume(tmp_path / "small", "1m") as small:
        monkeypatch.setattr(counting, "SHARED_MEMORY", small)
        assert counting_in(data, 1, alone=True).parent == data / NAME
        assert list(small.iterdir()) == []


def test_without_any_room_the_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Better than a worker that the system kills for its first count."""
    with small_volume(tmp_path / "small", "1m") as small:
        monkeypatch.setattr(counting, "SHARED_MEMORY", small)
        with pytest.raises(OSError, match="No space left"):
            counting_in(small, 1, alone=True)
        assert list((small / NAME).iterdir()) == []


def test_names_tell_data_directories_apart(tmp_path: Path) -> None:
    """By what they are and not by their paths, which containers share."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert shared_prefix(tmp_path / "a") != shared_prefix(tmp_path / "b")
    assert shared_prefix(tmp_path / "a") == shared_prefix(tmp_path / "b" / ".." / "a")
