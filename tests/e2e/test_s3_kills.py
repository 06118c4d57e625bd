"""SIGKILL at each call to the store, and at each change of the metadata, of whole uploads into a bucket.

Every test is one scenario, repeated for each of its points: before and after every attempt of a
call to the store, and before and after every change of the metadata (`kill_at_each`). Each names
the calls that must be among them.

Points that are not taken: reads of the metadata, which change nothing; what the clock brings about
(renewed leases, the purge of old rows); the moments inside a transaction, which the database owns.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e import s3_scenarios as scenarios
from tests.e2e.killing import Client, kill_at_each, running

if TYPE_CHECKING:
    from tests.stores.servers import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Iterator[list[Client]]:
    with running(tmp_path_factory.mktemp("kills"), store) as made:
        yield made


def test_O2_nothing_acknowledged_is_lost_by_a_kill(clients: list[Client]) -> None:
    """12 MiB in requests of 3, 4 and 5 MiB: no offset falls, the file is right, and one object is left."""
    metadata = {"create_upload", "acquire", "advance", "publish"}
    parts = {"create_multipart_upload", "upload_part", "complete_multipart_upload"}
    among = metadata | parts | {"put_object", "delete_object", "get_object"}
    kill_at_each(clients, scenarios.in_requests, among=among)


def test_O2_a_resume_in_a_new_process_loses_nothing(clients: list[Client]) -> None:
    """Two tails that a new process has to fetch, merged into a part by 3 MiB more; then the rest."""
    kill_at_each(clients, scenarios.resumed, among={"get_object", "upload_part", "advance", "delete_object"})


def test_C1_a_small_file_comes_of_one_request(clients: list[Client]) -> None:
    """64 KiB in the creation, repeated under the same link where no answer came: one file, one object."""
    kill_at_each(clients, scenarios.small, among={"create_upload", "put_object", "advance", "publish"})


def test_C1_a_joined_upload_becomes_ready(clients: list[Client]) -> None:
    """6 MiB and 1 MiB, joined: ready and right; the bucket has the file, and the partials' own objects."""
    among = {"create_upload", "upload_part_copy", "upload_part", "complete_multipart_upload", "advance", "publish"}
    kill_at_each(clients, scenarios.joined, among=among)


def test_E3_a_terminated_upload_leaves_nothing(clients: list[Client]) -> None:
    """A part and a tail, then DELETE: the upload is gone, its link stays used, and the bucket is as it was."""
    among = {"acquire", "end_upload", "abort_multipart_upload", "delete_object", "release"}
    kill_at_each(clients, scenarios.terminated, among=among)


def test_E3_a_terminated_file_leaves_nothing(clients: list[Client]) -> None:
    """As before, with an upload that has become a file."""
    among = {"acquire", "delete_file", "end_upload", "delete_object", "release"}
    kill_at_each(clients, scenarios.terminated_file, among=among)


def test_E3_an_expired_upload_leaves_nothing(tmp_path: Path, store: Store) -> None:
    """A part and a tail that expire: the sweep leaves nothing, and the link makes another upload."""
    with running(tmp_path, store, ATTACHD_UPLOAD_IDLE="2s") as clients:
        among = {"end_upload", "abort_multipart_upload", "delete_object"}
        kill_at_each(clients, scenarios.expired, among=among)
