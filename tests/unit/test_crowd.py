"""Who has to go when there are more connections than places, or more bytes of heads than is good."""

from __future__ import annotations

import resource

import pytest
import structlog
from structlog.testing import capture_logs

from service.web import crowd
from service.web.crowd import Crowd, descriptors, raise_descriptors


class One:
    """A connection that notes whether it was dropped."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.dropped = False
        crowd.enter(self)

    def drop(self) -> None:
        self.dropped = True
        # as a transport's `connection_lost` does, a moment later
        self.crowd.leave(self)


def dropped(members: list[One]) -> list[int]:
    return [number for number, member in enumerate(members) if member.dropped]


def test_a_newcomer_takes_the_place_of_who_waited_longest() -> None:
    """Places are never exceeded, and the newest connections have them."""
    crowd = Crowd(3)
    members = [One(crowd) for _ in range(5)]
    assert (dropped(members), len(crowd)) == ([0, 1], 3)


def test_who_has_a_request_under_way_stays() -> None:
    """A request keeps its place; its answer sends it to the end of the queue."""
    crowd = Crowd(3)
    members = [One(crowd) for _ in range(3)]
    crowd.work(members[0])
    crowd.work(members[1])
    crowd.wait(members[1])
    members.append(One(crowd))
    assert dropped(members) == [2]
    members += [One(crowd), One(crowd)]
    assert dropped(members) == [1, 2, 3]


def test_where_all_are_at_work_the_newcomer_goes() -> None:
    """Nobody's request is cut off for one that has not been made."""
    crowd = Crowd(2)
    members = [One(crowd), One(crowd)]
    for member in members:
        crowd.work(member)
    members.append(One(crowd))
    assert dropped(members) == [2]
    crowd.leave(members[0])
    members.append(One(crowd))
    assert dropped(members) == [2]


def test_heads_are_bounded_together() -> None:
    """Bytes of heads under way never exceed their bound, and who began its own first goes first."""
    crowd = Crowd(10, heads_bytes=100)
    members = [One(crowd) for _ in range(4)]
    crowd.begin_head(members[1], 10)
    crowd.begin_head(members[0], 40)
    crowd.begin_head(members[1], 60)
    assert dropped(members) == []
    crowd.begin_head(members[2], 1)
    assert dropped(members) == [1]
    crowd.begin_head(members[3], 59)
    assert dropped(members) == [1]
    crowd.work(members[0])
    crowd.begin_head(members[2], 41)
    assert dropped(members) == [1]
    crowd.begin_head(members[2], 42)
    assert dropped(members) == [1, 2]


def test_who_was_dropped_comes_back_through_no_door() -> None:
    """What a dropped connection still says before its end counts for nothing."""
    crowd = Crowd(1, heads_bytes=100)
    members = [One(crowd), One(crowd)]
    crowd.wait(members[0])
    crowd.begin_head(members[0], 1000)
    crowd.begin_head(members[1], 100)
    assert (dropped(members), len(crowd)) == ([0], 1)


def test_a_flood_is_told_of_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log has how many were dropped since it last said so."""
    instant = 0.0
    some = Crowd(1, now=lambda: instant)
    monkeypatch.setattr(crowd, "log", structlog.get_logger())
    with capture_logs() as records:
        members = [One(some) for _ in range(4)]
        instant = 61.0
        members.append(One(some))
    assert [(record["event"], record["count"]) for record in records] == [
        ("connections_dropped", 1),
        ("connections_dropped", 3),
    ]


def test_descriptors_are_raised_to_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The soft limit becomes the hard one, within reason, and is never lowered."""
    limits = {"now": (1024, 4096)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.update(now=wanted))
    raise_descriptors()
    assert (limits["now"], descriptors()) == ((4096, 4096), 4096)
    limits["now"] = 1024, 2**20
    raise_descriptors()
    assert limits["now"] == (30_000, 2**20)
    limits["now"] = 500_000, 2**20
    raise_descriptors()
    assert (limits["now"], descriptors()) == ((500_000, 2**20), 30_000)
    limits["now"] = 1024, resource.RLIM_INFINITY
    raise_descriptors()
    assert limits["now"] == (30_000, resource.RLIM_INFINITY)
