"""SIGKILL at the moment at which a call to the store goes wrong: each kind of call, each way to go wrong.

The service has its 500, its SlowDown or its broken connection in hand when it dies; where no answer
comes it dies waiting. The store is well again when the next process starts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import pytest

from tests.e2e import s3_scenarios as scenarios
from tests.e2e.killing import Client, Scenario
from tests.e2e.s3_service import KillableService, Nursery, on_bucket
from tests.stores.faults import Answer, Cut, Fault, cut_request, lose_reply, slow_down, status
from tests.stores.faulty import FaultyStore

if TYPE_CHECKING:
    from tests.stores.calls import Call, Kind
    from tests.stores.servers import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

#: in which there is a call of the kind
SCENARIOS: Final[dict[Kind, Scenario]] = {
    "put_object": scenarios.small,
    "get_object": scenarios.resumed,
    "head_object": scenarios.resumed,
    "delete_object": scenarios.resumed,
    "list_objects": scenarios.resumed,
    "list_multipart_uploads": scenarios.resumed,
    "create_multipart_upload": scenarios.resumed,
    "upload_part": scenarios.resumed,
    "complete_multipart_upload": scenarios.resumed,
    "upload_part_copy": scenarios.joined,
    "abort_multipart_upload": scenarios.terminated,
}
WAYS: Final[dict[str, Callable[[], Fault]]] = {
    "500": lambda: status(500),
    "SlowDown": lambda: slow_down(1),
    # of a part that is so much; of what has no body, after its head
    "cut": lambda: cut_request(2 * scenarios.MIB),
    "reply lost": lose_reply,
}


class DiesWaiting(Fault):
    """The request is taken whole and never answered, and whoever waits for the answer is killed."""

    takes_over = True

    def __init__(self, service: KillableService) -> None:
        self._service = service

    def answer(self, call: Call) -> Answer:
        """See `Fault.answer`."""
        self._service.die("waiting")
        raise Cut


class Fronted(Client):
    """A client of a service whose store is behind a faulty proxy, and well whenever the service starts."""

    def __init__(self, service: KillableService, store: Store, bucket: str, faulty: FaultyStore) -> None:
        super().__init__(service, store, bucket)
        self.faulty = faulty

    def revive(self) -> None:
        """See `Client.revive`."""
        self.faulty.clear()
        super().revive()

    @contextlib.contextmanager
    def dying(self, kind: Kind, way: str) -> Iterator[None]:
        """Inside, such calls go wrong in this way, and the service dies of the first."""
        self.service.wait_swept()
        at = "waiting" if way == "time-out" else f"after {kind} 1"
        with self.service.ordered(at):
            what = DiesWaiting(self.service) if way == "time-out" else WAYS[way]()
            self.faulty.fault(kind, what=what, times=None)
            yield
        self.faulty.clear()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Iterator[Fronted]:
    bucket = store.make_bucket()
    with Nursery() as nursery, FaultyStore(store) as faulty:
        settings = on_bucket(store, bucket) | {
            "ATTACHD_S3_ENDPOINT": faulty.endpoint,
            "ATTACHD_SWEEP_INTERVAL": "1s",
        }
        with KillableService(tmp_path_factory.mktemp("service"), nursery, settings) as service:
            yield Fronted(service, store, bucket, faulty)
    store.drop_bucket(bucket)


@pytest.mark.parametrize("way", [*WAYS, "time-out"])
@pytest.mark.parametrize("kind", SCENARIOS)
def test_a_kill_as_a_call_goes_wrong_loses_nothing(client: Fronted, kind: Kind, way: str) -> None:
    """Nothing acknowledged is lost, the end is right, and nothing is left in the bucket that should not be."""
    client.begin()
    SCENARIOS[kind](client, client.dying(kind, way))
    assert client.deaths == 1
