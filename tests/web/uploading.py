"""The steps of `tests.web.test_state_machine`: what clients, time and operators may do at any moment."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, ClassVar, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.model import ConcatKind, State
from service.protocol.fields import http_date
from tests.contract.buckets import MIB, PART
from tests.web.harness import TUS, Answer, Site, path_of
from tests.web.modelled import HOUR, IDLE, LIFE, LINK_LIFE, TOMBSTONE, Body, Model, Upload
from tests.web.pair import Pair

SOURCE: Final = Random(7).randbytes(2 * PART + 2 * MIB)
#: the address of no upload
NEVER: Final = "/files/u_" + "a" * 26
#: whether a body has a checksum, and a right one
CLAIMS: Final = (None, None, True, False)

#: so many uploads are looked at after each step, at most
MANY: Final = 8

#: Drawn as one number: the choices of a step owe nothing to each other, nor to those of other steps.
chances = st.randoms(use_true_random=True)


class Uploading(RuleBasedStateMachine):
    """One run: a few uploads, from their creation to their end."""

    pair: ClassVar[Pair]
    #: that the storage finds interesting
    sizes: ClassVar[list[int]]
    #: steps of all runs
    taken: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        #: steps that came to something, and requests
        self.steps = self.asked = 0
        self.whole = True
        self.told_before = len(self.pair.ready_files())
        self.stored_before = set(self.pair.stored())

    @property
    def now(self) -> float:
        return self.pair.clock.now()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        self.whole = False
        self.asked += 1
        return self.pair.run(work)

    # --- which upload, what is sent -------------------------------------------------------------

    def pick(self, chance: Random, fits: Callable[[Upload], bool]) -> Upload:
        """One that fits, if any does; now and then any."""
        fitting = [upload for upload in self.model.uploads if fits(upload)]
        return chance.choice(fitting if fitting and chance.random() < 0.9 else self.model.uploads)

    def lives(self, upload: Upload) -> bool:
        return self.model.gone(upload, self.now) is None

    def takes_bytes(self, upload: Upload) -> bool:
        writable = upload.state is State.RECEIVING and upload.kind is not ConcatKind.FINAL
        return writable and self.lives(upload)

    def any_takes_bytes(self) -> bool:
        return any(map(self.takes_bytes, self.model.uploads))

    def any_upload(self) -> bool:
        return bool(self.model.uploads)

    def room_for_more(self) -> bool:
        return sum(not upload.forgotten for upload in self.model.uploads) < MANY

    @staticmethod
    def content(chance: Random, size: int) -> bytes:
        start = chance.randrange(len(SOURCE) - size + 1)
        return SOURCE[start : start + size]

    def rest(self, chance: Random, upload: Upload) -> bytes:
        """What the upload lacks."""
        lacks = chance.choice(self.sizes) if upload.length is None else upload.length - upload.offset
        return self.content(chance, max(lacks, 0))

    def link(self, *, doomed: bool = False) -> str:
        return self.pair.sites[0].link(expires_in=int(LINK_LIFE), **({"sha256": "0" * 64} if doomed else {}))

    # --- creation -------------------------------------------------------------------------------

    @precondition(room_for_more)
    @rule(chance=chances)
    def create(self, chance: Random) -> None:
        """Of known or deferred length, with no bytes, one, all, or one too many, whole or cut off."""
        length, doomed = chance.choice(self.sizes), chance.random() < 0.2
        content = self.content(chance, chance.choice([0, 0, 1, length, length, length + 1]))
        cut_after = len(content) // 2 if len(content) > 1 and chance.random() < 0.3 else None
        claim = chance.choice(CLAIMS) if content else None
        body = Body(content, cut_after, bool(content) and chance.random() < 0.4, claim)
        known = None if chance.random() < 0.3 else length
        self.post(chance.randrange(2), self.made(self.link(doomed=doomed), known, ConcatKind.NONE, doomed=doomed), body)

    @precondition(room_for_more)
    @rule(chance=chances)
    def create_partial(self, chance: Random) -> None:
        """As before, to be joined with others."""
        length = chance.choice(self.sizes)
        body = Body(self.content(chance, chance.choice([0, length, length])))
        known = None if chance.random() < 0.2 else length
        self.post(chance.randrange(2), self.made(self.link(), known, ConcatKind.PARTIAL), body)

    def made(self, link: str, length: int | None, kind: ConcatKind, *, doomed: bool = False) -> Upload:
        now = self.now
        made = Upload("", link, now + LINK_LIFE, now, now + min(IDLE, LIFE), now, length, kind, doomed=doomed)
        made.declared, made.repeatable = length, kind is ConcatKind.NONE
        return made

    def post(self, which: int, made: Upload, body: Body) -> None:
        expected = self.model.may_create(made.length, body)
        if there_is_one := not self.model.makes_nothing(made.length, body):
            self.model.created(made, body, self.now)
        if made.state is State.FAILED:
            expected = 460
        fields = declaring(made.declared)
        if made.kind is ConcatKind.PARTIAL:
            fields["Upload-Concat"] = "partial"
        answer = self.run(self.pair.send(which, "POST", made.link, TUS | fields, body, expected))
        self.found(which, made if there_is_one else None, made.link, answer)

    def found(self, which: int, made: Upload | None, link: str, answer: Answer | None) -> None:
        """Its address is what the answer tells, or the link where there was none."""
        if answer is None or "Location" not in answer.headers:
            answer = self.run(self.pair.sites[which].ask("HEAD", link, TUS))
            if made is None or made.state is State.FAILED:
                assert answer.status == (404 if made is None else 410)
                # nobody knows the address
                self.model.uploads = [upload for upload in self.model.uploads if upload is not made]
                return
        assert made is not None, answer
        made.path = path_of(answer.headers["Location"])

    @precondition(room_for_more)
    @rule(chance=chances)
    def put(self, chance: Random) -> None:
        """The whole file without tus, or what came of it."""
        which, chunked = chance.randrange(2), chance.random() < 0.5
        content = self.content(chance, chance.choice(self.sizes))
        body = Body(content, len(content) // 2 if len(content) > 1 and chance.random() < 0.5 else None, chunked)
        made = self.made(self.link(), None if chunked else len(content), ConcatKind.NONE)
        made.repeatable = False
        self.model.created(made, body, self.now, closes=chunked)
        answer = self.run(self.pair.send(which, "PUT", made.link, {}, body, None if body.cut else 201))
        self.found(which, made, made.link, answer)

    @precondition(room_for_more)
    @precondition(any_upload)
    @rule(chance=chances)
    def join(self, chance: Random) -> None:
        """A final upload of partials in whatever state they are; once in a while of what is none."""
        whole = [upload for upload in self.model.uploads if self.is_part(upload)]
        parts = [self.pick(chance, self.is_part) for _ in range(chance.randrange(1, 4))]
        if len(whole) > 1 and chance.random() < 0.6:
            parts = chance.sample(whole, k=min(len(whole), 3))
        named: list[Upload | None] = [None if chance.random() < 0.03 else part for part in parts]
        which, made = chance.randrange(2), self.made(self.link(), None, ConcatKind.FINAL)
        made.partials = parts
        expected = self.model.final_status(named, self.now)
        if expected == 201:
            self.model.created(made, Body(), self.now)
        paths = " ".join(NEVER if part is None else part.path for part in named)
        fields = TUS | {"Upload-Concat": f"final;{paths}"}
        answer = self.run(self.pair.send(which, "POST", made.link, fields, Body(), expected))
        if expected == 201:
            self.found(which, made, made.link, answer)

    def is_part(self, upload: Upload) -> bool:
        return upload.kind is ConcatKind.PARTIAL and self.lives(upload)

    @precondition(any_upload)
    @rule(chance=chances)
    def create_again(self, chance: Random) -> None:
        """The same link, for the same length or another one: the upload that it made, or a new one if that is over."""
        which, upload = chance.randrange(2), self.pick(chance, lambda upload: upload.repeatable)
        if not upload.repeatable:
            return
        length = upload.declared if upload.declared is None else upload.declared + chance.choice([0, 0, 1])
        expected = self.model.repeated(upload, length, self.now)
        if expected == 201 and self.model.link_is_free(upload, self.now):
            self.model.overtaken(upload, self.now)
            upload.repeatable = False
            made = self.made(upload.link, length, ConcatKind.NONE, doomed=upload.doomed)
            made.link_expires_at = upload.link_expires_at
            self.post(which, made, Body())
            return
        fields = TUS | declaring(length)
        answer = self.run(self.pair.send(which, "POST", upload.link, fields, Body(), expected))
        if expected == 201:
            assert path_of(answer.headers["Location"]) == upload.path
            assert answer.offset == upload.offset

    # --- bytes ----------------------------------------------------------------------------------

    @precondition(any_upload)
    @rule(chance=chances)
    def append(self, chance: Random) -> None:
        """A PATCH, right or wrong in any of the ways there are."""
        upload = self.pick(chance, self.takes_bytes)
        offset = max(upload.offset + chance.choice([0, 0, 0, 0, -1, 1]), 0)
        rest = self.rest(chance, upload)
        content = chance.choice([b"", rest[:1], rest[: len(rest) // 2], rest, rest, rest[:-3], rest + b"!"])
        cut_after = len(content) // 2 if len(content) > 1 and chance.random() < 0.3 else None
        body = Body(content, cut_after, bool(content) and chance.random() < 0.4, chance.choice(CLAIMS))
        length = chance.choice([None, None, None, offset + len(content), max(offset - 1, 0), offset + 7])
        self.patch(chance.randrange(2), upload, offset, body, length)

    def patch(self, which: int, upload: Upload, offset: int, body: Body, length: int | None = None) -> None:
        expected = self.model.append(upload, offset, body, length, self.now)
        fields = TUS | {"Upload-Offset": str(offset)} | ({} if length is None else {"Upload-Length": str(length)})
        answer = self.run(self.pair.send(which, "PATCH", upload.path, fields, body, expected))
        if answer is not None and "Upload-Offset" in answer.headers:
            assert answer.offset == upload.offset

    @precondition(any_takes_bytes)
    @rule(chance=chances)
    def go_on(self, chance: Random) -> None:
        """A PATCH as a good client sends it: to the end, or to the middle."""
        upload = self.pick(chance, self.takes_bytes)
        content = self.rest(chance, upload)
        content = content[: chance.choice([len(content), len(content) // 2])]
        ends = upload.length is None and chance.random() < 0.5
        length = upload.offset + len(content) if ends else None
        self.patch(chance.randrange(2), upload, upload.offset, Body(content), length)

    @precondition(any_takes_bytes)
    @rule(chance=chances)
    def trickle(self, chance: Random) -> None:
        """A byte every fifty minutes: the upload lives on, but not for ever."""
        upload = self.pick(chance, self.takes_bytes)
        for _ in range(chance.randrange(1, 8)):
            if upload.length is None or upload.length > upload.offset + 1:
                self.wait(50)
                self.patch(chance.randrange(2), upload, upload.offset, Body(self.content(chance, 1)))

    @precondition(any_takes_bytes)
    @rule(chance=chances, does=st.sampled_from(["goes on", "deletes", "creates", "looks"]))
    def take_over(self, chance: Random, does: str) -> None:
        """Another request comes while a PATCH has brought half of its bytes."""
        upload = self.pick(chance, self.takes_bytes)
        content = self.rest(chance, upload)
        if not self.takes_bytes(upload) or len(content) < 2 or (does == "creates" and not upload.repeatable):
            return
        before, body = upload.offset, Body(content, len(content) // 2, claim=chance.choice(CLAIMS))
        self.model.append(upload, before, body, None, self.now)
        kept, expected = upload.offset, 201
        if does == "goes on":
            expected = self.model.append(upload, before, Body(content), None, self.now) or 0
        elif does == "deletes":
            expected = self.model.terminate(upload, self.now)
        older, newer = chance.randrange(2), self.pair.sites[chance.randrange(2)]

        async def both() -> None:
            line = await self.pair.begin(older, upload, before, body)
            if does == "looks":
                for method in ("GET", "HEAD"):
                    answer = await newer.ask(method, upload.path, TUS)
                    assert answer.status == 200
                    assert answer.offset in (before, kept)
                await self.pair.cut(older, line)
                return
            while (answer := await self.newer(newer, upload, does, before, content)).status == 423:
                pass
            assert answer.status == expected, answer
            answer = await line.answer()
            assert (answer.status, answer.offset) == (423, kept)

        self.run(both())

    @staticmethod
    async def newer(here: Site, upload: Upload, does: str, before: int, content: bytes) -> Answer:
        """The request that takes over."""
        if does == "deletes":
            return await here.ask("DELETE", upload.path, TUS)
        if does == "creates":
            return await here.ask("POST", upload.link, TUS | declaring(upload.declared) | {"Content-Length": "0"})
        return await here.patch(upload.path, before, content)

    @precondition(any_takes_bytes)
    @rule(chance=chances)
    def complete_without_storage(self, chance: Random) -> None:
        """The last byte comes while no file can be made of the upload: 503, and whoever asks next has it made."""
        upload = self.pick(chance, self.takes_bytes)
        if not self.takes_bytes(upload) or upload.kind is not ConcatKind.NONE or upload.length is None:
            return
        offset, content = upload.offset, self.rest(chance, upload)
        self.model.append(upload, offset, Body(content), None, self.now)
        self.run(self.pair.fail_to_complete(chance.randrange(2), upload, offset, content))

    # --- ends, time and operators ---------------------------------------------------------------

    @precondition(any_upload)
    @rule(chance=chances)
    def terminate(self, chance: Random) -> None:
        if chance.random() < 0.3:
            self.delete(chance.randrange(2), self.pick(chance, self.lives))

    def delete(self, which: int, upload: Upload) -> None:
        expected = self.model.terminate(upload, self.now)
        answer = self.run(self.pair.sites[which].ask("DELETE", upload.path, TUS))
        assert answer.status == expected, answer

    @rule(chance=chances)
    def time_passes(self, chance: Random) -> None:
        """What that ends is over whether or not the sweep comes."""
        self.wait(chance.choice([1, 1, 1, 10, 10, 10, 50, 61, 200, 26 * 60]))
        if chance.random() < 0.5:
            self.sweep(chance.randrange(2))

    def wait(self, minutes: int) -> None:
        self.pair.clock.forward(60 * minutes)

    def sweep(self, which: int) -> None:
        self.run(self.pair.sweep(which))
        self.model.sweep(self.now)

    @precondition(any_upload)
    @rule(chance=chances)
    def restart(self, chance: Random) -> None:
        """An orderly stop, in the middle of a PATCH if an upload takes one, and a start, which sweeps."""
        which, upload = chance.randrange(2), self.pick(chance, self.takes_bytes)
        content = self.rest(chance, upload)
        if len(content) > 1 and self.takes_bytes(upload):
            before, body = upload.offset, Body(content, len(content) // 2)
            self.model.append(upload, before, body, None, self.now)
            self.run(self.pair.restart_under(which, upload, before, body, upload.offset))
        else:
            self.run(self.pair.restart(which))
        self.sweep(which)

    @precondition(any_upload)
    @rule(chance=chances)
    def download(self, chance: Random) -> None:
        """The content, from any byte on."""
        here, upload = self.pair.sites[chance.randrange(2)], self.pick(chance, lambda upload: bool(upload.file_id))
        if not upload.file_id:
            return
        start = chance.choice([0, 0, 1, upload.offset // 2, upload.offset])
        fields, content = {"Range": f"bytes={start}-"} if start else {}, upload.content[start:]
        answer = self.run(here.ask("GET", here.download_link(upload.file_id), fields))
        if upload.state is State.TERMINATED:
            # without a row a file is one that may still come
            assert answer.status == (503 if upload.forgotten else 410), answer
        elif start and not content:
            assert answer.status == 416, answer
        else:
            assert (answer.status, answer.body) == (206 if start else 200, content)

    # --- what always holds ----------------------------------------------------------------------

    @invariant()
    def each_is_as_it_must_be(self) -> None:
        self.steps += self.asked > 0
        for at, upload in enumerate(self.model.uploads):
            self.run(self.look((at + self.steps) % 2, upload))
        self.whole, self.asked = True, 0

    async def look(self, which: int, upload: Upload) -> None:
        answer = await self.pair.sites[which].ask("HEAD", upload.path, TUS)
        if (gone := self.model.gone(upload, self.now)) is not None:
            assert answer.status == gone, (upload, answer)
            return
        length = self.model.told_length(upload)
        assert answer.status == 200, (upload, answer)
        assert answer.headers.get("Upload-Offset") == (None if upload.waits else str(upload.offset))
        assert answer.headers.get("Upload-Length") == (None if length is None else str(length))
        if upload.state is State.RECEIVING and upload.kind is ConcatKind.NONE:
            assert answer.headers["Upload-Expires"] == http_date(upload.expires_at)
        if upload.published and not upload.file_id:
            upload.file_id = await self.pair.sites[which].file_id(upload.path)
            assert await self.pair.sites[which].fetch(upload.file_id) == upload.content

    def teardown(self) -> None:
        type(self).taken += self.steps
        if self.whole:
            self.end()
            self.pair.forget_lines()
        else:
            # a step failed, perhaps half-way: the next run does not begin with what it left
            self.pair.renew()

    def end(self) -> None:
        """Each upload had one file at most; all of them end, and nothing is left: no bytes, and then no word."""
        published = [upload.path.rpartition("/")[2] for upload in self.model.uploads if upload.published]
        assert sorted(self.pair.ready_files()[self.told_before :]) == sorted(published)
        for upload in self.model.uploads:
            self.delete(0, upload)
        # what is not known as an upload any more stays as a file
        files = [upload.path.rpartition("/")[2] for upload in self.model.uploads if upload.state is State.READY]
        for seconds in (LIFE, TOMBSTONE + HOUR):
            self.wait(int(seconds / 60))
            self.sweep(1)
            self.each_is_as_it_must_be()
            left = set(self.pair.stored()) - self.stored_before
            assert not [name for name in left if not any(file[:15] in name for file in files)]
        assert all(upload.forgotten for upload in self.model.uploads)


def declaring(length: int | None) -> dict[str, str]:
    """What a creation says of the length."""
    return {"Upload-Defer-Length": "1"} if length is None else {"Upload-Length": str(length)}
