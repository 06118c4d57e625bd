"""The stores as fixtures; conftest.py makes them known to every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.stores.servers import Store, find_versitygw, open_store

if TYPE_CHECKING:
    from tests.stores.faulty import FaultyStore
    from tests.stores.servers import Kind

KINDS: tuple[Kind, ...] = ("versitygw", "moto")


def missing(kind: Kind) -> str:
    """Why a store of the kind cannot be had here; empty if it can."""
    if kind == "moto" or find_versitygw():
        return ""
    named = os.environ.get("ATTACHD_TEST_VERSITYGW")
    return f"{named} is no program" if named else "no versitygw on the PATH, nor named by ATTACHD_TEST_VERSITYGW"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A running store: versitygw, or moto where that is not there and not required."""
    why = missing("versitygw")
    if why and "s3" in os.environ.get("ATTACHD_TEST_REQUIRE", "").split(","):
        pytest.fail(f"s3 is required by ATTACHD_TEST_REQUIRE: {why}", pytrace=False)
    with _opened("moto" if why else "versitygw", tmp_path_factory) as running:
        yield running


@pytest.fixture(scope="session")
def moto_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A running moto."""
    with _opened("moto", tmp_path_factory) as running:
        yield running


@pytest.fixture(params=KINDS)
def any_store(request: pytest.FixtureRequest) -> Store:
    """Each kind of store in turn; skipped, or failed where required, without versitygw."""
    # conftest imports this module
    from tests.conftest import require  # noqa: PLC0415

    if why := missing(request.param):
        require("s3", why=why)
    found = request.getfixturevalue("moto_store" if request.param == "moto" else "store")
    assert isinstance(found, Store)
    return found


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> Iterator[str]:
    """A new bucket, gone after the test; of `any_store` where the test asks for that, else of `store`."""
    name = "any_store" if "any_store" in request.fixturenames else "store"
    holder: Store = request.getfixturevalue(name)
    made = holder.make_bucket()
    yield made
    holder.drop_bucket(made)


@pytest.fixture
def faulty(request: pytest.FixtureRequest) -> Iterator[FaultyStore]:
    """A proxy, without faults so far, before the store that `bucket` is in."""
    from tests.stores.faulty import FaultyStore  # noqa: PLC0415

    name = "any_store" if "any_store" in request.fixturenames else "store"
    with FaultyStore(request.getfixturevalue(name)) as running:
        yield running


def _opened(kind: Kind, directories: pytest.TempPathFactory) -> Store:
    directory: Path = directories.mktemp(kind)
    return open_store(kind, directory)
