"""Whose turn it is at an upload that two want to write."""

from __future__ import annotations

import asyncio

from service.leases import PATIENCE_SECONDS, TURN_SECONDS, Holder


def nothing() -> None:
    """Stops nobody."""


def begun(holder: Holder, seconds_ago: float) -> Holder:
    holder.began = asyncio.get_running_loop().time() - seconds_ago
    return holder


async def test_a_writer_that_has_just_begun_has_a_turn() -> None:
    """Which ends in time for whoever waits for it."""
    turn = begun(Holder(nothing, lambda: 0.0, 0.0), 0).turn_seconds()
    assert TURN_SECONDS - 0.1 < turn <= TURN_SECONDS < PATIENCE_SECONDS
    assert begun(Holder(nothing, lambda: 0.0, 0.0), TURN_SECONDS).turn_seconds() == 0


async def test_a_silent_writer_has_none() -> None:
    """A half-open connection makes way at once, though it has only just begun."""
    assert begun(Holder(nothing, lambda: 1.0, 0.0), 0).turn_seconds() == 0


async def test_who_waits_for_no_bytes_has_none() -> None:
    """And is not silent either: HEAD leaves it alone."""
    holder = begun(Holder(nothing, None, 0.0), 0)
    assert (holder.turn_seconds(), holder.silent_seconds()) == (0, 0)
