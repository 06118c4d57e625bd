"""When a body is too slow: silent, or dripping."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.web.pace import GRACE_SECONDS, WINDOW_SECONDS, Pace, PaceRules

RULES = PaceRules(idle_seconds=60, min_rate=1024)


def run(rate: float, seconds: int, rules: PaceRules = RULES) -> int | None:
    """The second at which a body of that rate is ended, None if it is not."""
    pace = Pace(rules, 0)
    for now in range(1, seconds + 1):
        pace.progress(int(rate * now), now)
        if pace.too_slow(now):
            return now
    return None


def test_silence_ends_a_body() -> None:
    """A body without a byte for the idle time ends, not a moment before."""
    pace = Pace(RULES, 100)
    pace.progress(10**6, 110)
    assert not pace.too_slow(169.9)
    assert pace.too_slow(170)


def test_silence_from_the_start() -> None:
    """The first byte has as long."""
    pace = Pace(RULES, 100)
    assert not pace.too_slow(159.9)
    assert pace.too_slow(160)


@pytest.mark.parametrize("rate", [1025, 2000, 10**9])
def test_fast_enough_goes_on(rate: int) -> None:
    """A body at the least rate or above goes on for ever."""
    assert run(rate, 1000) is None


@pytest.mark.parametrize("rate", [0.5, 100, 1000])
def test_drip_ends(rate: float) -> None:
    """A body below it ends once the first seconds and one window are over."""
    ended = run(rate, 1000)
    assert ended is not None
    assert GRACE_SECONDS + WINDOW_SECONDS <= ended <= GRACE_SECONDS + WINDOW_SECONDS + 1


def test_first_seconds_do_not_count() -> None:
    """A slow start is forgiven: the rate is measured after it."""
    pace = Pace(RULES, 0)
    total = 0
    for now in range(1, 300):
        total += 1 if now < GRACE_SECONDS else 2000
        pace.progress(total, now)
        assert not pace.too_slow(now)


def test_burst_does_not_pay_for_ever() -> None:
    """Bytes from before the window do not make up for a drip."""
    pace = Pace(RULES, 0)
    ended = None
    for now in range(1, 400):
        pace.progress(10**9 + now, now)
        if pace.too_slow(now):
            ended = now
            break
    assert ended is not None


def test_rate_of_zero_turns_it_off() -> None:
    """Without a least rate only silence counts."""
    assert run(0.5, 1000, PaceRules(idle_seconds=60, min_rate=0)) is None


def test_our_own_pause_is_not_the_clients() -> None:
    """While we do not read, neither silence nor rate counts."""
    pace = Pace(RULES, 0)
    for now in range(1, 60):
        pace.progress(now * 2000, now)
        assert not pace.too_slow(now)
    pace.paused(1000)
    assert not pace.too_slow(1001)
    assert pace.silent_seconds(1001) == 1


def test_silent_seconds() -> None:
    """How long ago the last byte came."""
    pace = Pace(RULES, 10)
    assert pace.silent_seconds(12) == 2
    pace.progress(1, 13)
    assert pace.silent_seconds(13.5) == 0.5


@given(st.lists(st.tuples(st.floats(0.01, 3), st.integers(4096, 10**6)), min_size=1, max_size=200))
def test_no_fast_body_is_ever_ended(steps: list[tuple[float, int]]) -> None:
    """However unevenly bytes come, a body above the least rate in every step goes on."""
    pace = Pace(RULES, 0)
    now, total = 0.0, 0
    for seconds, count in steps:
        now, total = now + seconds, total + count
        pace.progress(total, now)
        assert not pace.too_slow(now)


@given(st.lists(st.floats(0.1, 59), min_size=1, max_size=300))
def test_looks_are_bounded(gaps: list[float]) -> None:
    """What is remembered of a body is one window's looks, however long it runs."""
    pace = Pace(PaceRules(idle_seconds=60, min_rate=0), 0)
    now = 0.0
    for gap in gaps:
        now += gap
        pace.progress(int(now), now)
        pace.too_slow(now)
        assert all(since >= now - WINDOW_SECONDS for since, _ in list(pace._looks)[1:])
