"""Fixtures of the end-to-end tests: the places that operator commands are tried on; a look at all logs at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.e2e.leaks import leaks
from tests.e2e.process import LOGS
from tests.e2e.upkeep import BucketPlace, DiskPlace, Place
from tests.stores.fixtures import missing
from tests.stores.servers import Store

KINDS = ("disk", "moto", "versitygw")


@pytest.fixture(scope="session", autouse=True)
def _no_log_has_a_token() -> Iterator[None]:
    """A6: whatever the tests of this run did, no service has logged a token or an upload's address."""
    yield
    assert leaks(LOGS) == []


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Each kind of storage in turn, empty."""
    settings = {"ATTACHD_UPLOAD_IDLE": "1h", "ATTACHD_TOMBSTONE": "2h", "ATTACHD_BLOCK_SIZE": "64KiB"}
    if request.param == "disk":
        yield DiskPlace(tmp_path, settings)
        return
    if request.param == "versitygw" and (why := missing("versitygw")):
        require("s3", why=why)
    store: Store = request.getfixturevalue("moto_store" if request.param == "moto" else "store")
    for name, value in store.environment().items():
        monkeypatch.setenv(name, value)
    bucket = store.make_bucket()
    yield BucketPlace(tmp_path, settings, store, bucket)
    store.drop_bucket(bucket)
