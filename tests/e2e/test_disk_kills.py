"""SIGKILL at each step by which whole uploads come onto a disk: every change of files, and of the metadata.

As `test_s3_kills`, with the system calls that make, cut, sync, rename and remove files in the place
of the calls to a store.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.e2e import s3_scenarios as scenarios
from tests.e2e.killing import Client, Sending, kill_at_each
from tests.e2e.s3_scenarios import MIB, SOURCE
from tests.e2e.s3_service import KillableService, Nursery

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Disk:
    """The data directories of services, as `killing.Holding`."""

    def objects(self, place: str) -> dict[str, int]:
        """What is stored of uploads and files."""
        found = {}
        for path in self._files(place):
            # what is removed meanwhile is not there
            with contextlib.suppress(FileNotFoundError):
                found[str(path.relative_to(place))] = path.stat().st_size
        return found

    def multiparts(self, place: str) -> list[tuple[str, str]]:
        """A disk has none."""
        return []

    def age(self, place: str, seconds: float) -> None:
        """As `Holding.age`."""
        then = time.time() - seconds
        for path in self._files(place):
            with contextlib.suppress(FileNotFoundError):
                os.utime(path, (then, then))

    @staticmethod
    def _files(place: str) -> list[Path]:
        return [path for name in ("uploads", "files") for path in (Path(place) / name).rglob("*") if path.is_file()]


@pytest.fixture(scope="module", params=["complete", "always"])
def clients(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Client]]:
    """Two services on a directory each, for two threads."""
    folder = tmp_path_factory.mktemp("kills")
    settings = {"ATTACHD_SWEEP_INTERVAL": "1s", "ATTACHD_BLOCK_SIZE": "1MiB", "ATTACHD_DURABILITY": request.param}
    with Nursery() as nursery, contextlib.ExitStack() as stack:
        made = []
        for number in range(2):
            service = stack.enter_context(KillableService(folder / str(number), nursery, settings))
            made.append(Client(service, Disk(), str(service.data)))
        yield made


def in_requests(client: Client, killed: AbstractContextManager[object]) -> None:
    """12 MiB in requests of 3, 4 and 5 MiB: no offset falls, the file is right, and nothing else is left."""
    with killed:
        sending = Sending(client, SOURCE)
        sending.create()
        for end in (3 * MIB, 7 * MIB, 12 * MIB):
            sending.send(end)
        sending.look()
    sending.download(SOURCE)
    client.until(lambda: list(client.left().values()) == [len(SOURCE)], "debris")


def in_pieces(client: Client, killed: AbstractContextManager[object]) -> None:
    """2.5 MiB in pieces that are written without a lease but for the first and the last."""
    content = SOURCE[: 5 * MIB // 2]
    with killed:
        sending = Sending(client, content)
        sending.create()
        for end in range(MIB // 2, len(content) + 1, MIB // 2):
            sending.send(end)
        sending.look()
    sending.download(content)
    client.until(lambda: list(client.left().values()) == [len(content)], "debris")


def joined(client: Client, killed: AbstractContextManager[object]) -> None:
    """6 MiB and 1 MiB, joined: ready, by itself, and right; beside the partials there is one file."""
    scenarios.join(client, killed)
    client.until(lambda: sorted(client.left().values()) == [MIB, 6 * MIB, 7 * MIB], "debris")


def at_once(client: Client, killed: AbstractContextManager[object]) -> None:
    """64 KiB in one step, repeated where no answer came: one file, and in the end nothing beside it."""
    size = scenarios.send_small(client, killed)
    client.until(lambda: list(client.left().values()) == [size], "debris")


def test_C1_an_upload_becomes_a_file_once(clients: list[Client]) -> None:
    """12 MiB in three requests: wherever it dies, no offset falls, and the file comes and is right."""
    kill_at_each(clients, in_requests, among={"create_upload", "advance", "publish", "fsync", "rename"})


def test_C1_an_upload_in_small_pieces_becomes_a_file(clients: list[Client]) -> None:
    """2.5 MiB in five requests, of which three need no lease: no offset falls, and the file is right."""
    kill_at_each(clients, in_pieces, among={"create_upload", "advance", "go_on", "publish"})


def test_C1_a_file_comes_of_one_request_onto_a_disk(clients: list[Client]) -> None:
    """64 KiB in the creation, repeated under the same link where no answer came: one file."""
    kill_at_each(clients, at_once, among={"create_ready", "link"})


def test_S2_what_was_being_joined_becomes_ready(clients: list[Client]) -> None:
    """A final upload, killed at each step of its joining, becomes ready without being asked to."""
    kill_at_each(clients, joined, among={"create_upload", "advance", "publish", "replace", "rename"})


def test_E3_a_terminated_upload_leaves_no_byte_on_a_disk(clients: list[Client]) -> None:
    """DELETE, killed at each step: the upload is gone, its link stays used, and the disk is as it was."""
    kill_at_each(clients, scenarios.terminated, among={"end_upload", "unlink"})


def test_E3_a_terminated_file_leaves_no_byte_on_a_disk(clients: list[Client]) -> None:
    """As before, with an upload that has become a file."""
    kill_at_each(clients, scenarios.terminated_file, among={"delete_file", "end_upload", "unlink"})
