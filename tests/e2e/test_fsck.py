"""`attachd fsck`: every difference between database and storage has its line, and what agrees has none."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import threading
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from service.commands.fsck import _ADVICE
from service.fsck import Word
from tests.e2e.process import ServiceProcess
from tests.e2e.test_operating import begin_upload, patch, run
from tests.e2e.upkeep import BucketPlace, DiskPlace, Place
from tests.ports import free_port
from tests.web.harness import TUS, Site
from tests.web.sweeps import HOUR, broken, final


def findings(done: subprocess.CompletedProcess[str]) -> list[tuple[str, str]]:
    """Word and id of each line but the last, which sums up."""
    *lines, last = done.stdout.splitlines()
    assert " findings (" in last
    found = []
    for line in lines:
        word, what = line.partition(":")[0].split()
        assert line.endswith(f" -> {_ADVICE[Word(word)]}")
        found.append((word, what))
    assert len(found) == len(set(found))
    return found


def named(found: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """The findings where storage's name of an upload may be the beginning of its id."""
    return {(word, what[:15] if what.startswith("u_") else what) for word, what in found}


@dataclass
class Made:
    """Ids and paths."""

    paths: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    async def first(self, here: Site) -> None:
        """Uploads and files that a copy of the database will know."""
        for name in ("goes on", "is finished", "is terminated", "stays"):
            self.paths[name] = await here.create(10)
            await here.patch(self.paths[name], 0, b"hello")
        for name in ("stays", "is deleted"):
            self.paths[f"file that {name}"] = path = await here.create(4)
            await here.patch(path, 0, b"file")
            self.files[name] = await here.file_id(path)
        part = await here.create(5, Upload_Concat="partial")
        await here.patch(part, 0, b"part!")
        await final(here, part, await here.create(5, Upload_Concat="partial"))
        await here.create(7)

    async def then(self, here: Site) -> None:
        """What happens after the copy was made."""
        await here.patch(self.paths["goes on"], 5, b"wor")
        await here.patch(self.paths["is finished"], 5, b"world")
        for name in ("is terminated", "file that is deleted"):
            assert (await here.ask("DELETE", self.paths[name], TUS)).status == 204
        self.paths["file that is new"] = path = await here.create(3)
        await here.patch(path, 0, b"new")
        self.paths["is new"] = path = await here.create(10)
        await here.patch(path, 0, b"young")

    def id(self, name: str) -> str:
        return self.paths[name].rpartition("/")[2]


def copied(place: Place, target: Path) -> None:
    """A copy of the database as a backup makes it."""
    with (
        contextlib.closing(sqlite3.connect(place.data / "attachd.db")) as database,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        database.backup(copy)


def test_what_agrees_is_clean(place: Place) -> None:
    """Files, uploads in every unfinished state, partials and a final that waits: no finding, and no byte changed."""
    made = Made()

    async def finishing(here: Site) -> None:
        path = await here.create(10)
        await here.patch(path, 0, b"two ")
        with broken(here, "metadata", "publish"):
            assert (await here.patch(path, 4, b"pieces")).status == 503
        path = await here.create(4)
        with broken(here, "storage", "complete"):
            assert (await here.patch(path, 0, b"last")).status == 503

    place.made(made.first)
    place.made(made.then)
    place.made(finishing)
    place.age(2 * HOUR)
    before = place.snapshot()
    done = place.run("fsck")
    assert (done.returncode, done.stderr, findings(done)) == (0, "", [])
    assert done.stdout.startswith("3 files, 8 unfinished uploads: 0 findings (")
    assert place.snapshot() == before


def test_c7_every_difference_to_a_restored_older_database_is_named(place: Place, tmp_path: Path) -> None:
    """C7: under a copy of the database that is older than the files, each thing that happened since is told."""
    made = Made()
    place.made(made.first)
    copied(place, tmp_path / "copy.db")
    place.made(made.then)
    (tmp_path / "copy.db").rename(place.data / "attachd.db")
    place.age(2 * HOUR)
    before = place.snapshot()
    done = place.run("fsck")
    assert (done.returncode, done.stderr) == (1, "")
    expected = [
        ("stranger", made.id("file that is new")),
        ("leftover", made.id("is new")),
        ("upload-finished", made.id("is finished")),
        ("upload-short", made.id("is terminated")),
        ("file-missing", made.files["is deleted"]),
    ]
    if isinstance(place, BucketPlace):
        # its bytes are in an object of another name; on a disk they are where the ledger finds them
        expected.append(("upload-short", made.id("is finished")))
    assert named(findings(done)) == named(expected)
    assert place.snapshot() == before


def test_c7_every_file_that_is_missing_under_a_newer_database_is_named(place: Place) -> None:
    """C7: lost and shortened objects, and bytes of unfinished uploads, are told; nothing else is."""
    made = Made()
    place.made(made.first)
    keys = dict(place.rows("select id, key from files"))
    place.lose(keys[made.files["stays"]])
    place.replace(keys[made.files["is deleted"]], b"fil")
    name = made.id("goes on")[:15]
    for held in [key for key in place.held() if name in key]:
        if isinstance(place, BucketPlace):
            place.lose(held)
        else:
            (place.data / held).write_bytes(b"hell")
    done = place.run("fsck")
    assert (done.returncode, done.stderr) == (1, "")
    expected = [
        ("file-missing", made.files["stays"]),
        ("file-size", made.files["is deleted"]),
        ("upload-short", made.id("goes on")),
    ]
    assert sorted(findings(done)) == sorted(expected)
    backed = 0 if isinstance(place, BucketPlace) else 4
    assert f"offset 5 is recorded, the first {backed} bytes are held" in done.stdout
    assert "4 bytes are recorded under " in done.stdout


def test_young_bytes_without_a_record_are_spared(place: Place, tmp_path: Path) -> None:
    """What was changed within the last hour, or what is said instead, is not told, and the last line says so."""
    place.made(lambda here: here.upload(b"first"))
    copied(place, tmp_path / "copy.db")
    place.made(lambda here: here.upload(b"second"))
    (tmp_path / "copy.db").rename(place.data / "attachd.db")
    place.age(1800)
    done = place.run("fsck")
    assert (done.returncode, findings(done)) == (0, [])
    assert "younger than 1h were spared" in done.stdout
    done = place.run("fsck", "--older-than", "20m")
    assert [word for word, _ in findings(done)] == ["stranger"]
    assert "younger than 20m were spared" in done.stdout


def test_staged_leftovers_on_a_disk_are_told_and_do_no_harm(tmp_path: Path) -> None:
    """A segment that no ledger names has its line, and is no finding."""
    place = DiskPlace(tmp_path, {})
    made = Made()
    place.made(made.first)
    upload_id = made.id("stays")
    (place.data / "uploads" / upload_id[2:4] / f"{upload_id}.e1-2").write_bytes(b"surplus")
    assert findings(place.run("fsck")) == []
    place.age(2 * HOUR)
    done = place.run("fsck")
    assert (done.returncode, findings(done)) == (0, [("staged", upload_id)])
    assert f"7 bytes in {upload_id}.e1-2, which its ledger does not name" in done.stdout


def test_a_disk_that_is_not_mounted_is_no_lost_file(tmp_path: Path) -> None:
    """Where the storage's directory is gone, nothing is told to be missing: exit code 2, and nothing is made."""
    database = f"sqlite:///{tmp_path}/elsewhere.db"
    place = DiskPlace(tmp_path, {"ATTACHD_DATABASE": database})
    assert place.run("migrate").returncode == 0
    place.made(lambda here: here.upload(b"hello"))
    place.data.rename(tmp_path / "unmounted")
    done = place.run("fsck")
    assert (done.returncode, done.stdout) == (2, "")
    (said,) = done.stderr.splitlines()
    assert "ATTACHD_DATA" in said
    assert "mounted" in said
    assert not place.data.exists()


@pytest.mark.parametrize("place", ["moto"], indirect=True)
def test_a_store_that_is_away_is_no_lost_file(place: Place) -> None:
    """A bucket that does not answer is exit code 2 and a line."""
    place.made(lambda here: here.upload(b"hello"))
    done = place.run("fsck", ATTACHD_S3_ENDPOINT=f"http://127.0.0.1:{free_port()}")
    assert (done.returncode, done.stdout) == (2, "")
    (said,) = done.stderr.splitlines()
    assert said.startswith("Error: ATTACHD_STORAGE=s3: ")


def test_a_service_beside_it_makes_no_finding(tmp_path: Path) -> None:
    """Uploads that come, grow, end and are deleted while it looks are no differences, and are not disturbed."""
    with ServiceProcess(tmp_path) as service:
        stop = threading.Event()
        failed: list[BaseException] = []

        def traffic() -> None:
            try:
                while not stop.is_set():
                    url = begin_upload(service, 5)
                    if not stop.wait(0.01):
                        patch_whole(url, b"hello")
                    request = urllib.request.Request(url, method="DELETE", headers=TUS)
                    urllib.request.urlopen(request, timeout=30).close()
            except BaseException as error:
                failed.append(error)
                raise

        workers = [threading.Thread(target=traffic) for _ in range(2)]
        busy = begin_upload(service, 10)
        with patch(service, busy, 10, b"hello") as line:
            for worker in workers:
                worker.start()
            try:
                done = run(service, "fsck", "--older-than", "0s")
                # what is between its record and its bytes is seen by who spares nothing, and never taken for lost
                assert done.stderr == ""
                assert {word for word, _ in findings(done)} <= {"leftover", "orphan", "staged"}
                for _ in range(2):
                    done = run(service, "fsck")
                    assert (done.returncode, done.stderr, findings(done)) == (0, "", [])
            finally:
                stop.set()
                for worker in workers:
                    worker.join()
            line.sendall(b"world")
            assert line.recv(1000).startswith(b"HTTP/1.1 204 ")
        assert failed == []
        assert service.status(busy)["state"] == "ready"


def patch_whole(url: str, content: bytes) -> None:
    """The upload has all its bytes."""
    headers = TUS | {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    urllib.request.urlopen(urllib.request.Request(url, content, headers, method="PATCH"), timeout=30).close()
