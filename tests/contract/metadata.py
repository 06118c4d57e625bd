"""The contract of MetadataStore: an adapter's test subclasses `MetadataContract`.

The subclass has an async fixture `make_store`: a function that opens a store, the same database
each time it is called within a test, and an empty one at the first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from service.metadata.base import MetadataStore
from tests.contract.metadata_control import ControlContract
from tests.contract.metadata_crashes import CrashContract
from tests.contract.metadata_leases import LeaseContract
from tests.contract.metadata_model import WalkContract
from tests.contract.metadata_outbox import OutboxContract
from tests.contract.metadata_upkeep import UpkeepContract
from tests.contract.metadata_uploads import UploadContract
from tests.contract.metadata_verdicts import VerdictContract

MakeStore = Callable[[], Awaitable[MetadataStore]]


class MetadataContract(
    UploadContract,
    LeaseContract,
    UpkeepContract,
    OutboxContract,
    CrashContract,
    VerdictContract,
    WalkContract,
    ControlContract,
):
    """Every sentence of `service.metadata.base`."""

    @pytest.fixture
    async def store(self, make_store: MakeStore) -> MetadataStore:
        return await make_store()

    @pytest.fixture
    async def other(self, make_store: MakeStore, store: MetadataStore) -> MetadataStore:
        """A second store on the same database, as another process has one."""
        return await make_store()
