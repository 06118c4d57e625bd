"""The contract of Outbox: what waits for an endpoint, in which order, and for how long it is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from service.metadata.base import MetadataStore
from service.metadata.outbox import Backlog, Due, Listed, Outlook, Standing, Verdict, Which
from service.model import Event
from tests.contract.metadata_values import NOW, make_event, make_upload, use_of

CHAT = {"chat": "https://chat.example/events"}
DELIVERED = Verdict("ok", delivered=True)
GIVEN_UP = Verdict("timeout")


def every(_kind: str) -> bool:
    return True


def of(file_id: str, kind: str = "file.ready", at: float = NOW) -> Event:
    """An event about the file."""
    return replace(make_event(file_id, kind, file_id=file_id), created_at=at)


async def tell(store: MetadataStore, *events: Event) -> None:
    """They are in the outbox."""
    upload = make_upload()
    await store.create_upload(upload, use_of(upload), events=events)


async def taken(
    store: MetadataStore, *events: Event, wants: Callable[[str], bool] = every, now: float = NOW
) -> tuple[Due, ...]:
    """What is due for `chat` once these are told and taken in."""
    await tell(store, *events)
    await store.outbox.take_in("chat", wants, now=now, limit=100)
    return await due(store, now)


async def due(store: MetadataStore, now: float = NOW) -> tuple[Due, ...]:
    return (await store.outbox.outlook("chat", now=now, limit=100)).due


class OutboxContract:
    """Places, order, retries, replay and retention."""

    async def test_a_new_endpoint_begins_with_what_happens_from_now_on(self, store: MetadataStore) -> None:
        """What was told before it was registered is not news; what comes after is, and is due once taken in."""
        await tell(store, of("f_old"))
        await store.outbox.register(CHAT)
        assert await store.outbox.outlook("chat", now=NOW, limit=9) == Outlook(active=True)
        event = of("f_new")
        await tell(store, event)
        assert await store.outbox.outlook("chat", now=NOW, limit=9) == Outlook(active=True, news=True)
        assert await store.outbox.take_in("chat", every, now=NOW, limit=9) == 1
        assert await store.outbox.outlook("chat", now=NOW, limit=9) == Outlook(
            active=True, due=(Due(2, "f_new", 0, event),)
        )

    async def test_registering_again_keeps_the_place(self, store: MetadataStore, other: MetadataStore) -> None:
        """A restart, and a time without the endpoint, lose nothing that was told meanwhile."""
        await store.outbox.register(CHAT)
        await tell(store, of("f_a"))
        await other.outbox.register({})
        assert not (await store.outbox.outlook("chat", now=NOW, limit=9)).active
        assert await store.outbox.take_in("chat", every, now=NOW, limit=9) == 0
        await tell(store, of("f_b"))
        await other.outbox.register(CHAT)
        await store.outbox.take_in("chat", every, now=NOW, limit=9)
        assert [each.file_id for each in await due(other)] == ["f_a", "f_b"]

    async def test_an_unknown_endpoint_has_nothing(self, store: MetadataStore) -> None:
        """Whatever is asked of one that was never registered comes to nothing."""
        await tell(store, of("f_a"))
        assert await store.outbox.outlook("none", now=NOW, limit=9) == Outlook(active=False)
        assert await store.outbox.take_in("none", every, now=NOW, limit=9) == 0
        assert await store.outbox.replay("none", [1], now=NOW) == 0
        assert not await store.outbox.enable("none")

    async def test_only_wanted_types_are_on_their_way(self, store: MetadataStore) -> None:
        """Others are passed by, and never looked at again."""
        await store.outbox.register(CHAT)
        found = await taken(store, of("f_a"), of("f_a", "file.deleted"), wants=lambda kind: kind == "file.deleted")
        assert [each.event.type for each in found] == ["file.deleted"]
        assert await store.outbox.take_in("chat", every, now=NOW, limit=9) == 0

    async def test_the_place_moves_by_the_limit(self, store: MetadataStore) -> None:
        """A long backlog is taken in bites, in the order of what happened."""
        await store.outbox.register(CHAT)
        await tell(store, *(of(f"f_{number}") for number in range(5)))
        bites = [await store.outbox.take_in("chat", every, now=NOW, limit=2) for _ in range(4)]
        assert bites == [2, 2, 1, 0]
        assert [each.file_id for each in await due(store)] == [f"f_{number}" for number in range(5)]
        assert len((await store.outbox.outlook("chat", now=NOW, limit=3)).due) == 3

    async def test_V2_the_first_of_a_file_holds_back_the_next(self, store: MetadataStore) -> None:
        """V2: Of each file one event is due; the next is once that is delivered, also if it was taken in before."""
        await store.outbox.register(CHAT)
        first, other = await taken(store, of("f_a", "upload.created"), of("f_a"), of("f_b"), of("f_a", "file.deleted"))
        assert (first.event.type, other.file_id) == ("upload.created", "f_b")
        assert await store.outbox.settle("chat", first, DELIVERED, now=NOW)
        assert {(each.file_id, each.event.type) for each in await due(store)} == {
            ("f_a", "file.ready"),
            ("f_b", "file.ready"),
        }

    async def test_V2_order_holds_over_what_comes_later(self, store: MetadataStore) -> None:
        """V2: An event that is told while an earlier one of its file waits for its next try waits behind it."""
        await store.outbox.register(CHAT)
        (first,) = await taken(store, of("f_a"))
        again = Verdict("timeout", again_at=NOW + 60)
        assert await store.outbox.settle("chat", first, again, now=NOW)
        assert await taken(store, of("f_a", "file.deleted")) == ()
        (found,) = await due(store, NOW + 60)
        assert (found.event, found.attempts) == (first.event, 1)

    async def test_what_is_given_up_makes_way(self, store: MetadataStore) -> None:
        """The next of the file is due, and the one that was given up stays recorded with its result."""
        await store.outbox.register(CHAT)
        (first,) = await taken(store, of("f_a"), of("f_a", "file.deleted"))
        assert await store.outbox.settle("chat", first, GIVEN_UP, now=NOW)
        assert [each.event.type for each in await due(store)] == ["file.deleted"]
        (gone, waiting) = await store.outbox.listed(Which(), limit=9)
        assert gone == Listed(first.seq, first.event, (Standing("chat", True, 1, None, "timeout"),))
        assert waiting.missing == (Standing("chat", False, 0, NOW, None),)

    async def test_V1_a_try_is_settled_once(self, store: MetadataStore, other: MetadataStore) -> None:
        """V1: Of two processes that sent the same event one settles it; the other changes nothing."""
        await store.outbox.register(CHAT)
        (first,) = await taken(store, of("f_a"))
        assert await store.outbox.settle("chat", first, Verdict("timeout", again_at=NOW + 5), now=NOW)
        for verdict in (DELIVERED, GIVEN_UP, Verdict("timeout", again_at=NOW)):
            assert not await other.outbox.settle("chat", first, verdict, now=NOW)
        assert await due(other) == ()
        assert len(await due(other, NOW + 5)) == 1

    async def test_endpoints_know_nothing_of_each_other(self, store: MetadataStore) -> None:
        """What one has got, another still waits for."""
        await store.outbox.register(CHAT | {"audit": "https://audit.example/"})
        (first,) = await taken(store, of("f_a"))
        await store.outbox.take_in("audit", every, now=NOW, limit=9)
        await store.outbox.settle("chat", first, DELIVERED, now=NOW)
        assert await due(store) == ()
        assert len((await store.outbox.outlook("audit", now=NOW, limit=9)).due) == 1

    async def test_a_disabled_endpoint_keeps_its_place(self, store: MetadataStore) -> None:
        """Nothing is handed out for it; enabled again it goes on with what was pending and what came since."""
        await store.outbox.register(CHAT)
        await taken(store, of("f_a"))
        await store.outbox.disable("chat", now=NOW)
        assert await taken(store, of("f_b")) == ()
        assert await store.outbox.disabled() == {"chat"}
        await store.outbox.register(CHAT)
        assert await due(store) == ()
        assert await store.outbox.enable("chat")
        assert not await store.outbox.enable("chat")
        await store.outbox.take_in("chat", every, now=NOW, limit=9)
        assert [each.file_id for each in await due(store)] == ["f_a", "f_b"]

    async def test_another_url_enables(self, store: MetadataStore) -> None:
        """An endpoint that is registered with another URL is not the one that was gone."""
        await store.outbox.register(CHAT)
        await store.outbox.disable("chat", now=NOW)
        await store.outbox.register({"chat": "https://new.example/"})
        assert await store.outbox.disabled() == frozenset()

    async def test_backlog(self, store: MetadataStore) -> None:
        """What is pending is counted, due or not; what was delivered or given up is not."""
        await store.outbox.register(CHAT)
        assert await store.outbox.backlog("chat") == Backlog(0, None)
        first, second = await taken(store, of("f_a"), of("f_a"), of("f_b", at=NOW + 7))
        assert await store.outbox.backlog("chat") == Backlog(3, NOW)
        await store.outbox.settle("chat", first, DELIVERED, now=NOW)
        await store.outbox.settle("chat", second, GIVEN_UP, now=NOW)
        (last,) = await due(store)
        assert await store.outbox.backlog("chat") == Backlog(1, NOW)
        await store.outbox.settle("chat", last, DELIVERED, now=NOW)
        assert await store.outbox.backlog("chat") == Backlog(0, None)

    async def test_replay(self, store: MetadataStore) -> None:
        """What was delivered or given up is due again as if for the first time, under its id, in its order."""
        await store.outbox.register(CHAT)
        (first,) = await taken(store, of("f_a"), of("f_a", "file.deleted"))
        await store.outbox.settle("chat", first, GIVEN_UP, now=NOW)
        (second,) = await due(store)
        await store.outbox.settle("chat", second, DELIVERED, now=NOW)
        assert await store.outbox.replay("chat", [second.seq, first.seq], now=NOW + 9) == 2
        assert await due(store, NOW + 9) == (first,)
        await store.outbox.settle("chat", first, DELIVERED, now=NOW + 9)
        assert await due(store, NOW + 9) == (second,)

    async def test_a_replay_goes_before_what_is_pending(self, store: MetadataStore) -> None:
        """An older event of the file that is replayed comes first, also before one that is under way."""
        await store.outbox.register(CHAT)
        (first,) = await taken(store, of("f_a"), of("f_a", "file.deleted"))
        await store.outbox.settle("chat", first, DELIVERED, now=NOW)
        (second,) = await due(store)
        await store.outbox.replay("chat", [first.seq], now=NOW)
        assert await due(store) == (first,)
        assert await store.outbox.settle("chat", second, Verdict("timeout", again_at=NOW), now=NOW)
        assert await due(store) == (first,)
        await store.outbox.settle("chat", first, DELIVERED, now=NOW)
        (last,) = await due(store)
        assert (last.seq, last.attempts) == (second.seq, 1)

    async def test_what_lies_behind_the_place_is_not_replayed(self, store: MetadataStore) -> None:
        """It comes anyhow, and comes once."""
        await store.outbox.register(CHAT)
        await tell(store, of("f_a"))
        assert await store.outbox.replay("chat", [1, 99], now=NOW) == 0
        assert len(await taken(store)) == 1

    async def test_listed(self, store: MetadataStore) -> None:
        """Events are chosen by id or by instants, and come in pages, oldest first."""
        events = [of(f"f_{number}", at=NOW + number) for number in range(4)]
        await tell(store, *events)

        async def ids(which: Which, after: int = 0, limit: int = 9) -> list[str]:
            return [each.event.subject for each in await store.outbox.listed(which, after=after, limit=limit)]

        assert await ids(Which(id=events[2].id)) == ["f_2"]
        assert await ids(Which(since=NOW + 1, until=NOW + 3)) == ["f_1", "f_2"]
        assert await ids(Which(), limit=3) == ["f_0", "f_1", "f_2"]
        assert await ids(Which(), after=3) == ["f_3"]

    async def test_forget(self, store: MetadataStore) -> None:
        """Events that happened before the instant go, in bites; newer ones stay, and the feed's cursor stays true."""
        await tell(store, *(of("f_a", at=NOW - number) for number in (3, 2, 1)), of("f_b"))
        assert [await store.outbox.forget(before=NOW, limit=2) for _ in range(3)] == [2, 1, 0]
        assert [seq for seq, _ in await store.events()] == [4]
        await store.outbox.forget(before=NOW + 1, limit=9)
        await tell(store, of("f_c"))
        assert [seq for seq, _ in await store.events(after=4)] == [5]

    async def test_V1_what_waits_is_not_forgotten(self, store: MetadataStore) -> None:
        """V1: An event that is pending, or not taken in, stays however old; delivered or given up it may go."""
        await store.outbox.register(CHAT)
        (first,) = await taken(store, of("f_a"), of("f_a"))
        await tell(store, of("f_b"))
        assert await store.outbox.forget(before=NOW + 1, limit=9) == 0
        await store.outbox.settle("chat", first, DELIVERED, now=NOW)
        assert await store.outbox.forget(before=NOW + 1, limit=9) == 1
        (second,) = await due(store)
        await store.outbox.settle("chat", second, GIVEN_UP, now=NOW)
        assert await store.outbox.forget(before=NOW + 1, limit=9) == 1
        assert [each.missing for each in await store.outbox.listed(Which(), limit=9)] == [()]

    async def test_an_endpoint_that_gets_nothing_keeps_nothing(self, store: MetadataStore) -> None:
        """What waits only for one that is disabled, or not configured any more, goes when its time has come."""
        await store.outbox.register(CHAT)
        await taken(store, of("f_a"))
        await tell(store, of("f_b"))
        await store.outbox.disable("chat", now=NOW)
        assert await store.outbox.forget(before=NOW + 1, limit=9) == 2
        await store.outbox.enable("chat")
        assert await due(store) == ()
        assert await store.outbox.backlog("chat") == Backlog(0, None)
