"""SIGKILL at each call to the store, and at each change of the metadata, of whole uploads into a bucket.

Every test is one scenario, repeated for each of its points: before and after every attempt of a
call to the store, and before and after every change of the metadata (`kill_at_each`). Each names
the calls that must be among them.

Points that are not taken: reads of the metadata, which change nothing; what the clock brings about
(renewed leases, the purge of old rows); the moments inside a transaction, which the database owns.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import pytest

from tests.e2e.killing import Answer, Client, Sending, kill_at_each, running

if TYPE_CHECKING:
    from tests.stores.servers import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KIB, MIB = 2**10, 2**20
SOURCE: Final = random.Random(1).randbytes(12 * MIB)


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Iterator[list[Client]]:
    with running(tmp_path_factory.mktemp("kills"), store) as made:
        yield made


# --- uploads -------------------------------------------------------------------------------------


def test_O2_nothing_acknowledged_is_lost_by_a_kill(clients: list[Client]) -> None:
    """12 MiB in requests of 3, 4 and 5 MiB: no offset falls, the file is right, and one object is left."""

    def scenario(client: Client, killed: AbstractContextManager[object]) -> None:
        with killed:
            sending = Sending(client, SOURCE)
            sending.create()
            for end in (3 * MIB, 7 * MIB, 12 * MIB):
                sending.send(end)
            sending.look()
        sending.download(SOURCE)
        assert client.left() == {f"{sending.name}/file": len(SOURCE)}

    metadata = {"create_upload", "acquire", "advance", "publish", "release"}
    parts = {"create_multipart_upload", "upload_part", "complete_multipart_upload"}
    kill_at_each(clients, scenario, among=metadata | parts | {"put_object", "delete_object", "get_object"})


def test_O2_a_resume_in_a_new_process_loses_nothing(clients: list[Client]) -> None:
    """Two tails that a new process has to fetch, merged into a part by 3 MiB more; then the rest."""

    def scenario(client: Client, killed: AbstractContextManager[object]) -> None:
        sending = Sending(client, SOURCE)
        sending.create()
        sending.send(3 * MIB)
        sending.send(4 * MIB)
        client.revive()
        with killed:
            sending.look()
            sending.send(7 * MIB)
            sending.send(12 * MIB)
            sending.look()
        sending.download(SOURCE)
        assert client.left() == {f"{sending.name}/file": len(SOURCE)}

    kill_at_each(clients, scenario, among={"get_object", "upload_part", "advance", "delete_object"})


def test_C1_a_small_file_comes_of_one_request(clients: list[Client]) -> None:
    """64 KiB in the creation, repeated under the same link where no answer came: one file, one object."""
    source = SOURCE[: 64 * KIB]

    def scenario(client: Client, killed: AbstractContextManager[object]) -> None:
        with killed:
            sending = Sending(client, source)
            sending.create(source)
            sending.send(len(source))
            sending.look()
        sending.download(source)
        assert list(client.left().values()) == [len(source)]

    kill_at_each(clients, scenario, among={"create_upload", "put_object", "advance", "publish"})


def test_C1_a_joined_upload_becomes_ready(clients: list[Client]) -> None:
    """6 MiB and 1 MiB, joined: ready and right; the bucket has the file, and the partials' own objects."""
    first, second = SOURCE[: 6 * MIB], SOURCE[6 * MIB : 7 * MIB]

    def scenario(client: Client, killed: AbstractContextManager[object]) -> None:
        partials: list[Sending] = []
        for source in (first, second):
            partial = Sending(client, source, partials[0].link if partials else None, Upload_Concat="partial")
            partial.create()
            partial.send(len(source))
            partials.append(partial)
        final = Sending(client, b"", partials[0].link)
        named = " ".join(urlsplit(partial.location).path for partial in partials)
        with killed:
            answer = client.surely("POST", final.link, Upload_Concat=f"final;{named}")
            assert answer.status == 201, answer
            final.location = answer.headers["Location"]
            client.until(lambda: b'"ready"' in client.surely("GET", final.location).body, "not ready")
        final.download(first + second)
        whole = {f"{final.name}/file": 7 * MIB, f"{partials[0].name}/file": 6 * MIB}
        left = client.left()
        small = [key for key in left if key.startswith(f"{partials[1].name}/")]
        assert left == whole | dict.fromkeys(small, MIB)
        assert len(small) == 1

    among = {"create_upload", "upload_part_copy", "upload_part", "complete_multipart_upload", "advance", "publish"}
    kill_at_each(clients, scenario, among=among)


# --- ends ----------------------------------------------------------------------------------------


def _is_gone(client: Client, sending: Sending, answer: Answer | None) -> None:
    """With all that there was of it, by a DELETE that is said again where no answer came."""
    if answer is None:
        assert client.surely("DELETE", sending.location).status in (204, 404)
    else:
        assert answer.status == 204, answer
    assert client.surely("HEAD", sending.location).status == 410
    assert client.surely("POST", sending.link, Upload_Length="5").status == 410
    client.until(lambda: not client.left(), "debris")


def test_E3_a_terminated_upload_leaves_nothing(clients: list[Client]) -> None:
    """A part and a tail, then DELETE: the upload is gone, its link stays used, and the bucket is as it was."""

    def scenario(client: Client, killed: AbstractContextManager[object]) -> None:
        sending = Sending(client, SOURCE)
        sending.create()
        sending.send(7 * MIB)
        with killed:
            answer = client.ask("DELETE", sending.location)
        _is_gone(client, sending, answer)

    among = {"acquire", "end_upload", "abort_multipart_upload", "delete_object", "release"}
    kill_at_each(clients, scenario, among=among)


def test_E3_a_terminated_file_leaves_nothing(clients: list[Client]) -> None:
    """As before, with an upload that has become a file."""
    source = SOURCE[: 6 * MIB]

    def scenario(client: Client, killed: AbstractContextManager[object]) -> None:
        sending = Sending(client, source)
        sending.create()
        sending.send(len(source))
        with killed:
            answer = client.ask("DELETE", sending.location)
        _is_gone(client, sending, answer)

    kill_at_each(clients, scenario, among={"acquire", "delete_file", "end_upload", "delete_object", "release"})


def test_E3_an_expired_upload_leaves_nothing(tmp_path: Path, store: Store) -> None:
    """A part and a tail that expire: the sweep leaves nothing, and the link makes another upload."""

    def scenario(client: Client, killed: AbstractContextManager[object]) -> None:
        sending = Sending(client, SOURCE)
        sending.create()
        sending.send(7 * MIB)
        with killed:
            client.until(lambda: client.service.died() or not client.left(), "neither expired nor dead")
            if client.service.died():
                client.revive()
        assert client.surely("HEAD", sending.location).status == 410
        client.until(lambda: not client.left(), "debris")
        again = Sending(client, SOURCE, sending.link)
        again.create()
        assert again.location != sending.location
        assert client.surely("DELETE", again.location).status == 204

    with running(tmp_path, store, ATTACHD_UPLOAD_IDLE="2s") as clients:
        kill_at_each(clients, scenario, among={"end_upload", "abort_multipart_upload", "delete_object"})
