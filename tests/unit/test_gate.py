"""The gate: a token is looked at once, and never for longer than it and its key are good."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service import gate as module
from service.gate import Gate
from service.keyfile import new_key
from service.keyset import KeySet, KeyState
from service.links import LinkRefusal, mint_download, mint_upload
from service.metrics import Metrics
from service.model import FileId

NOW = 1_800_000_000.0
FILE, OTHER = FileId("f_" + "a" * 26), FileId("f_" + "b" * 26)


class Clock:
    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


class Door:
    """A gate whose keys and clock the test changes, and how often it really looked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.key = new_key("HS256", issuer="backend", now=NOW)
        self.keys = KeySet((self.key,))
        self.clock = Clock()
        self.metrics = Metrics("1")
        self.looks = 0
        self.gate = Gate(
            lambda: self.keys, audience=None, upload_life_seconds=86400, download_life_seconds=86400,
            service_life_seconds=86400,
            clock=self.clock, metrics=self.metrics,
        )  # fmt: skip
        for name in ("verify_upload", "verify_download"):
            inner = getattr(module, name)

            def counted(*args, _inner=inner, **options):
                self.looks += 1
                return _inner(*args, **options)

            monkeypatch.setattr(module, name, counted)

    def upload(self, **claims: Any) -> str:
        terms: dict[str, Any] = {
            "audience": "x",
            "jti": "j" * 16,
            "now": NOW,
            "expires_in": 600,
            "max_size": 5,
        } | claims
        return mint_upload(self.key, **terms)

    def download(self) -> str:
        return mint_download(self.key, audience="x", now=NOW, expires_in=600, file_id=FILE)


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Door:
    return Door(monkeypatch)


async def test_a_token_is_verified_once(door: Door) -> None:
    """The second request with a token gets the same terms without another look, and is counted all the same."""
    token, download = door.upload(), door.download()
    assert await door.gate.upload(token) == await door.gate.upload(token)
    assert await door.gate.download(download, FILE) == await door.gate.download(download, FILE)
    assert door.looks == 2
    assert door.metrics.registry.get_sample_value("attachd_token_verifications_total", {"result": "ok"}) == 4


async def test_what_is_known_expires_with_the_token(door: Door) -> None:
    """An upload link that was good is marked as expired after its time, and a download link refused."""
    token, download = door.upload(), door.download()
    assert not (await door.gate.upload(token)).expired
    await door.gate.download(download, FILE)
    door.clock.time += 600 + 61
    assert (await door.gate.upload(token)).expired
    with pytest.raises(LinkRefusal, match="expired"):
        await door.gate.download(download, FILE)


async def test_what_is_known_goes_with_the_key(door: Door) -> None:
    """Once its key is revoked a token is refused, though it was good a moment ago."""
    token = door.upload()
    await door.gate.upload(token)
    door.keys = KeySet((replace(door.key, state=KeyState.REVOKED),))
    with pytest.raises(LinkRefusal, match="revoked"):
        await door.gate.upload(token)


async def test_a_download_link_is_known_for_its_file_only(door: Door) -> None:
    """A link that was good for one file is no good for another."""
    download = door.download()
    await door.gate.download(download, FILE)
    with pytest.raises(LinkRefusal, match="another file"):
        await door.gate.download(download, OTHER)


async def test_a_refused_token_is_not_remembered(door: Door) -> None:
    """Each request with a bad token is looked at, and refused."""
    for _ in range(2):
        with pytest.raises(LinkRefusal):
            await door.gate.upload(door.upload() + "x")
    assert door.looks == 2


async def test_memory_is_bounded(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest tokens are forgotten."""
    monkeypatch.setattr(module, "_REMEMBERED", 3)
    tokens = [door.upload(jti=f"{number:016d}") for number in range(5)]
    for token in tokens:
        await door.gate.upload(token)
    assert len(door.gate._known) == 3
    await door.gate.upload(tokens[-1])
    assert door.looks == 5
