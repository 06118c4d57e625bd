"""When an event is tried again, as a rule without a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.delivery import GAPS, again_at

DAY = 86_400


def test_ten_tries_take_three_days() -> None:
    """The last of ten tries is made close to three days after the first."""
    assert len(GAPS) + 1 == 10
    assert 2.9 * DAY < sum(GAPS) <= 3 * DAY


@pytest.mark.parametrize("tries", range(1, 10))
@given(chance=st.floats(0, 1))
def test_each_gap_is_longer_than_the_one_before(tries: int, chance: float) -> None:
    """Jitter moves a try by a tenth at most, and never before the shortest form of its gap."""
    due = again_at(tries, 1000.0, chance)
    assert due is not None
    assert 0.9 * GAPS[tries - 1] <= due - 1000.0 + 1e-9
    assert due - 1000.0 <= 1.1 * GAPS[tries - 1] + 1e-9
    assert tries == 1 or GAPS[tries - 1] > GAPS[tries - 2]


def test_after_the_last_there_is_none() -> None:
    """The tenth failure is the end."""
    assert again_at(10, 0, 0.5) is None
