"""`attachd gc`: what it removes, what it says it would, and that neither harms a service beside it."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from service.storage.base import StorageFull
from tests.e2e.process import ServiceProcess
from tests.e2e.test_operating import begin_upload, patch, run
from tests.e2e.upkeep import Place
from tests.web.harness import TUS, Site
from tests.web.sweeps import DAY, HOUR, broken, final, skip

#: a line of what would be removed
REMOVAL = re.compile(r"([a-z-]+) +(?:(link) )?(\S+)  (\d+) bytes")
#: a line of a sum
SUM = re.compile(r"([a-z-]+) +(\d+) +([0-9.]+[KMGT]?i?B)")


@dataclass
class Scene:
    """What was made, by what shall become of it: ids and bytes."""

    due: set[tuple[str, str, int]] = field(default_factory=set)
    kept: list[str] = field(default_factory=list)

    async def make(self, here: Site) -> None:
        """All that a sweep removes, ten days old, and some things that it must leave."""
        away = StorageFull("away")
        expired = await here.create(10)
        await here.patch(expired, 0, b"hello")
        part = await here.create(5, Upload_Concat="partial")
        await here.patch(part, 0, b"abc")
        joined = await final(here, part)
        for path, size in ((expired, 5), (part, 3), (joined, 0)):
            self.due.add(("expired-upload", here.upload_id(path), size))
        timed, kept = await here.create(4, here.link(ttl=60)), await here.create(4)
        ended, terminated = await here.create(6), await here.create(7)
        for path, content in ((timed, b"file"), (kept, b"kept"), (ended, b"ended!"), (terminated, b"two")):
            await here.patch(path, 0, content)
        self.kept.append(await here.file_id(kept))
        files = [await here.file_id(path) for path in (timed, ended)]
        for path in (ended, terminated):
            with broken(here, "storage", "discard", away):
                assert (await here.ask("DELETE", path, TUS)).status == 204
        self.due |= {("orphan", here.upload_id(ended), 6), ("leftover", here.upload_id(terminated), 3)}
        self.due.add(("expired-file", files[0], 4))
        tombstones = [here.upload_id(path) for path in (timed, kept, ended, terminated)]
        self.due |= {("tombstone", each, 0) for each in (*tombstones, files[1])}

        skip(here, 10 * DAY - HOUR / 2)
        alive = await here.create(10)
        await here.patch(alive, 0, b"alive")
        self.kept += [here.upload_id(alive), await here.upload(b"young", ttl=int(HOUR))]


def removals(output: str) -> list[tuple[str, str, int]]:
    """What a dry run says, link uses left out: their ids are hashes."""
    found = [REMOVAL.fullmatch(line) for line in output.splitlines()]
    return [(match[1], match[3], int(match[4])) for match in found if match and not match[2]]


def sums(output: str) -> dict[str, tuple[int, str]]:
    """How many of each kind, and how many bytes."""
    found = [SUM.fullmatch(line) for line in output.splitlines()]
    return {match[1]: (int(match[2]), match[3]) for match in found if match}


def same(place: Place, listed: set[tuple[str, str, int]], due: set[tuple[str, str, int]]) -> bool:
    """Whether the two are the same where storage's name of an upload may be the beginning of its id."""

    def short(found: set[tuple[str, str, int]]) -> set[tuple[str, str, int]]:
        return {(kind, what[:15] if kind in ("orphan", "leftover") else what, size) for kind, what, size in found}

    return short(listed) == short(due)


def test_e1_a_dry_run_tells_what_a_run_then_removes(place: Place) -> None:
    """E1: each thing with id and bytes, and nothing else; it changes no byte; the run removes just that."""
    scene = Scene()
    place.made(scene.make, ago=10 * DAY)
    place.age(2 * HOUR)
    before, held = place.snapshot(), place.held()

    told = place.run("gc", "--dry-run")
    assert (told.returncode, told.stderr) == (0, "")
    assert place.snapshot() == before
    listed = removals(told.stdout)
    assert len(listed) == len(set(listed))
    assert same(place, set(listed), scene.due), (listed, scene.due)
    links = [line for line in told.stdout.splitlines() if line.startswith("tombstone ") and " link " in line]
    assert sums(told.stdout)["tombstone"] == (5 + len(links), "0B")
    assert sums(told.stdout)["expired-upload"] == (3, "8B")

    done = place.run("gc")
    assert (done.returncode, done.stderr) == (0, "")
    assert sums(done.stdout) == sums(told.stdout)
    assert done.stdout.splitlines()[0] == "removed:"
    gone = {what[:15] for kind, what, _ in scene.due if kind in ("orphan", "leftover", "expired-upload")}
    assert not [key for key in place.held() if any(name in key for name in gone)]
    # of what was there, the kept file, the young one, and the upload that goes on are left
    assert len(place.held()) == 3
    assert len(held) > 3
    left = {row[0] for row in place.rows("select id from files where deleted_at is null union select id from uploads")}
    assert set(scene.kept) <= left
    expired = sorted(what for kind, what, _ in scene.due if kind == "expired-upload")
    assert sorted(event["upload_id"] for event in place.events("upload.expired")) == expired

    again = place.run("gc", "--dry-run")
    assert removals(again.stdout) == []


def test_gc_says_what_kept_it_from_being_done(place: Place) -> None:
    """A step that fails is told, by upload and reason, and is exit code 1; the rest is done."""

    async def stuck(here: Site) -> None:
        path = await here.create(10)
        await here.patch(path, 0, b"hello")
        with broken(here, "storage", "complete"):
            finishing = await here.create(5)
            await here.patch(finishing, 0, b"lost!")
        ids.extend(map(here.upload_id, (path, finishing)))

    ids: list[str] = []
    place.made(stuck, ago=2 * HOUR)
    place.age(HOUR)
    # another file lies where the finished one belongs
    if (place.data / "files").exists():
        lies = place.data / "files" / ids[1][2:4] / ids[1]
        lies.parent.mkdir(exist_ok=True)
        lies.mkdir()
        done = place.run("gc")
        assert done.returncode == 1
        assert sums(done.stdout)["expired-upload"] == (1, "5B")
        assert "sweep_step_failed" in done.stderr
        assert ids[1] in done.stderr
    else:
        done = place.run("gc")
        assert (done.returncode, done.stderr) == (0, "")
        assert place.rows("select count(*) from files") == [(1,)]


def test_c1_gc_finishes_what_a_crash_interrupted(place: Place) -> None:
    """C1: an upload whose last byte is in becomes a file, with no service at all."""

    async def finishing(here: Site) -> str:
        path = await here.create(5)
        with broken(here, "storage", "complete"):
            assert (await here.patch(path, 0, b"whole")).status == 503
        return here.upload_id(path)

    place.made(finishing)
    done = place.run("gc")
    assert (done.returncode, done.stderr) == (0, "")
    (key,) = place.rows("select key from files")
    assert place.content(key[0]) == b"whole"


def test_e1_gc_beside_a_service_reaps_once(tmp_path: Path) -> None:
    """E1: two sweepers and a running PATCH: each upload expires once, and the writer's goes on to its end."""
    with ServiceProcess(tmp_path, ATTACHD_UPLOAD_IDLE="2s", ATTACHD_SWEEP_INTERVAL="1s") as service:
        idle = [begin_upload(service, 10) for _ in range(30)]
        busy = begin_upload(service, 10)
        with patch(service, busy, 10, b"hello") as line:
            deadline = time.monotonic() + 45
            while len(reaped(service)) < len(idle):
                assert time.monotonic() < deadline
                done = run(service, "gc")
                assert (done.returncode, done.stderr) == (0, "")
            line.sendall(b"world")
            assert line.recv(1000).startswith(b"HTTP/1.1 204 ")
        assert service.status(busy)["state"] == "ready"
        assert {service.status(upload)["status"] for upload in idle} == {410}
        told = [event for event in Path(service.log_path).read_text().splitlines() if "sweep_step_failed" in event]
        assert told == []
        assert run(service, "gc").returncode == 0
        assert sorted(reaped(service).values()) == [1] * len(idle)


def reaped(service: ServiceProcess) -> Counter[str]:
    """How often it was told of each upload that it expired."""
    with contextlib.closing(sqlite3.connect(f"file:{service.data / 'attachd.db'}?mode=ro", uri=True)) as database:
        told = database.execute("select subject from events where type = 'upload.expired'").fetchall()
    return Counter(subject for (subject,) in told)


def test_the_wrong_database_is_told_in_a_line(place: Place) -> None:
    """A database that is not there is not made, and the line names the setting."""
    done = place.run("gc", "--dry-run")
    assert done.returncode == 1
    (said,) = done.stderr.splitlines()
    assert "ATTACHD_DATABASE" in said
    assert not (place.data / "attachd.db").exists()


@pytest.mark.parametrize("place", ["moto", "versitygw"], indirect=True)
def test_anothers_bucket_is_left_alone(place: Place, tmp_path: Path) -> None:
    """On a bucket of another database each command ends with the line that a start has, and changes nothing."""
    place.made(lambda here: here.upload(b"hello"))
    before = place.snapshot()
    other = ServiceProcess(tmp_path / "other", **place.service.settings)
    place.service = other
    assert place.run("migrate").returncode == 0
    start = run(other, "serve")
    assert start.returncode == 1
    line = start.stderr.splitlines(keepends=True)[-1]
    assert "belongs to another database" in line
    said = {command: place.run(*command.split()) for command in ("gc", "gc --dry-run", "fsck", "verify --all")}
    assert {command: done.stderr for command, done in said.items()} == dict.fromkeys(said, line)
    assert [done.returncode for done in said.values()] == [1, 1, 2, 2]
    place.service = ServiceProcess(tmp_path, **other.settings)
    assert place.snapshot() == before
