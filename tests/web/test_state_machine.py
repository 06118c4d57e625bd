"""Any order of what clients, time and operators do, against two services on one directory, and a model.

Hypothesis chooses the steps; `tests.web.modelled` says what each must come to. Two real
services share the database and the storage as two workers do, each request goes to one of them,
and the clock is the test's. After every step each upload is looked at, and at the end of a run
nothing may be left of any. The steps are the same each time; `ATTACHD_TEST_STEPS` asks for more
of them, and for others; `-s` prints how many were made.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.contract.buckets import MIB, PART, bucket_of
from tests.web.modelled import IDLE, LIFE, TOMBSTONE
from tests.web.pair import Pair
from tests.web.s3_site import on_bucket
from tests.web.uploading import Uploading

if TYPE_CHECKING:
    from tests.stores.faulty import FaultyStore
    from tests.stores.servers import Store

MORE: Final = os.environ.get("ATTACHD_TEST_STEPS")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(0 if MORE else 300)]

STEPS_OF_ONE_RUN: Final = 30
#: how many there are in all unless the environment says otherwise
STEPS: Final = 400
RULES: Final[dict[str, Any]] = {
    "upload_idle": f"{IDLE:.0f}s",
    "upload_life": f"{LIFE:.0f}s",
    "tombstone": f"{TOMBSTONE:.0f}s",
    "block_size": MIB,
    # what was told of is held against the model at the end
    "event_retention": "3650d",
}


def play(pair: Pair, sizes: list[int], steps: int) -> None:
    """So many steps, in runs of some."""

    class Machine(Uploading):
        pass

    Machine.pair, Machine.sizes = pair, sizes
    limits = settings(
        max_examples=max(int(MORE or steps) // STEPS_OF_ONE_RUN, 1),
        stateful_step_count=STEPS_OF_ONE_RUN,
        derandomize=not MORE,
        # a failure is told as it came; with more time, as simple as it can be
        phases=[Phase.generate, Phase.shrink] if MORE else [Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    run_state_machine_as_test(Machine, settings=limits)
    print(f"\n{Machine.taken} steps")


@contextlib.contextmanager
def served(pair: Pair) -> Iterator[Pair]:
    """Both services run until the context is left."""
    try:
        pair.run(pair.open())
        yield pair
    finally:
        pair.close()


def test_any_order_of_requests_agrees_with_the_model_on_disk(tmp_path: Path) -> None:
    """Statuses, offsets, expiry, contents and what is left are those of the model, whichever service is asked."""
    with served(Pair(tmp_path, lambda pair: pair.sites[0].leftovers(), **RULES)) as pair:
        play(pair, [0, 1, 2, 5, 1000, 70_000, MIB - 1, MIB, MIB + 1, 3 * MIB], STEPS)


def test_any_order_of_requests_agrees_with_the_model_in_a_bucket(
    tmp_path: Path, store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on disk, with uploads that are tails, parts and both."""

    def stored(_: Pair) -> list[str]:
        return [*held.objects(), *(f"{key}?{upload}" for key, upload in held.multiparts())]

    pair = Pair(tmp_path, stored, **on_bucket(store, bucket, faulty) | RULES)
    held = pair.enter(bucket_of(store, bucket, faulty, monkeypatch))
    with served(pair):
        play(pair, [0, 1, 5, 70_000, MIB, PART - 1, PART, PART + 1, PART + MIB, 2 * PART], STEPS // 2)
