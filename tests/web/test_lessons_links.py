"""Lessons C4, A1 and A2: what a link is good for, how often, and for how long."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service.keyfile import KeyFile, new_key
from service.keyset import Key, KeySet
from service.links import mint_service
from tests.web.harness import OCTETS, TUS, Answer, FakeClock, Site, path_of, site
from tests.web.traces import claims, count, events, forge, forward, instant, traces

HOUR = 3600


# --- C4: the reply to a creation is lost ---------------------------------------------------------


async def test_C4_lost_replies_make_one_upload(here: Site) -> None:
    """Three lost 201s and a fourth try make one upload, one link use and one event, all at one Location."""
    link = here.link()
    for _ in range(3):
        line = await here.line()
        await line.send(f"POST {link} HTTP/1.1\r\nHost: files.test\r\nTus-Resumable: 1.0.0\r\n".encode())
        await line.send(b"Upload-Length: 100\r\nContent-Length: 0\r\n\r\n")
        # the answer is on its way, and the client is gone
        assert await line.reader.readexactly(1)
        line.reset()
    first = await here.post(100, link)
    assert (first.status, first.offset) == (201, 0)
    assert (count(here, "uploads"), count(here, "links")) == (1, 1)
    assert [kind for kind, _ in events(here)] == ["upload.created"]
    assert (await here.post(100, link)).headers["Location"] == first.headers["Location"]


async def test_C4_creation_again_finds_what_was_sent(here: Site) -> None:
    """A POST repeated at 60 % gives the same Location and the offset, and HEAD agrees."""
    link = here.link()
    path = await here.create(100, link)
    await here.patch(path, 0, b"x" * 60)
    again = await here.post(100, link)
    assert (again.status, path_of(again.headers["Location"]), again.offset) == (201, path, 60)
    assert (await here.head(path)).offset == 60


async def test_C4_the_link_finds_its_upload_after_its_end(later: Site) -> None:
    """Hours after the link expired it still leads to its upload, and cannot make another."""
    link = later.link(expires_in=HOUR)
    path = await later.create(100, link)
    forward(later, 5 * HOUR)
    again = await later.post(100, link)
    assert (again.status, path_of(again.headers["Location"])) == (201, path)
    assert count(later, "uploads") == 1


async def test_C4_an_expired_upload_frees_its_link(tmp_path: Path) -> None:
    """Once the upload of a link expired, the link makes a new one from byte 0."""
    clock = FakeClock()
    async with site(tmp_path, clock=clock, upload_idle="10m") as here:
        link = here.link(expires_in=HOUR)
        path = await here.create(100, link)
        await here.patch(path, 0, b"x" * 60)
        clock.forward(700)
        again = await here.post(100, link)
        assert (again.status, again.offset) == (201, 0)
        assert path_of(again.headers["Location"]) != path


async def test_C4_a_terminated_upload_keeps_its_link(here: Site) -> None:
    """A terminated upload does not free its link: the user said no."""
    link = here.link()
    path = await here.create(100, link)
    await here.ask("DELETE", path, TUS)
    before = traces(here)
    assert (await here.post(100, link)).slug == "gone"
    assert traces(here) == before


# --- A1: the token ends in the middle of an upload -----------------------------------------------


async def test_A1_upload_outlives_its_link(later: Site) -> None:
    """A 60 s link carries a 3 h upload that goes on after a pause of 8 h, with one POST."""
    path = await later.create(700, later.link(expires_in=60))
    for offset in range(0, 600, 100):
        forward(later, HOUR / 2)
        assert (await later.patch(path, offset, bytes([offset // 100]) * 100)).status == 204
    forward(later, 8 * HOUR)
    assert (await later.head(path)).offset == 600
    assert (await later.patch(path, 600, b"\6" * 100)).status == 204
    assert await later.stored(path) == b"".join(bytes([number]) * 100 for number in range(7))
    assert count(later, "uploads") == 1


@pytest.mark.parametrize("where", ["sig", "bearer"])
@pytest.mark.parametrize("token", ["expired", "garbage", "empty"])
async def test_A1_upload_url_ignores_tokens(later: Site, where: str, token: str) -> None:
    """An upload's address answers 200 and 204 whatever dead token a client still sends along."""
    text = {"expired": later.token(expires_in=60), "garbage": "a.b.c", "empty": ""}[token]
    path = await later.create(10)
    forward(later, 2 * HOUR)
    target = f"{path}?sig={text}" if where == "sig" else path
    extra = {"Authorization": f"Bearer {text}"} if where == "bearer" else {}
    assert (await later.ask("HEAD", target, TUS | extra)).status == 200
    assert (await later.ask("GET", target, extra)).status == 200
    sent = TUS | extra | {"Upload-Offset": "0", "Content-Type": OCTETS}
    assert (await later.ask("PATCH", target, sent, b"x" * 10)).status == 204
    assert (await later.ask("DELETE", target, TUS | extra)).status == 204


# --- A2: which token opens what ------------------------------------------------------------------

#: what is asked, with {file} for a finished file
REQUESTS: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "create": ("POST", "/files", TUS | {"Upload-Length": "5", "Content-Length": "0"}),
    "put": ("PUT", "/files", {"Content-Length": "0"}),
    "find": ("HEAD", "/files", TUS),
    "fetch": ("GET", "/d/{file}", {}),
    "look": ("HEAD", "/d/{file}", {}),
    "verify": ("GET", "/d/{file}/manifest", {}),
}
UPLOADS = ("create", "put", "find")
DOWNLOADS = ("fetch", "look", "verify")

#: token -> answers to the requests on /files, then to those on /d
TOKENS: Mapping[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "none": ((401, 401, 401), (401, 401, 401)),
    "upload": ((201, 201, 404), (403, 403, 403)),
    "download": ((403, 403, 403), (200, 200, 200)),
    "service": ((403, 403, 403), (403, 403, 403)),
    "download of another file": ((403, 403, 403), (403, 403, 403)),
    "upload, expired": ((401, 401, 404), (403, 403, 403)),
    "download, expired": ((403, 403, 403), (403, 403, 403)),
    "upload for another service": ((401, 401, 401), (403, 403, 403)),
    "download for another service": ((403, 403, 403), (401, 401, 401)),
    "upload typed as download": ((403, 403, 403), (403, 403, 403)),
    "upload with a download's scope": ((403, 403, 403), (403, 403, 403)),
    "upload with two scopes": ((403, 403, 403), (403, 403, 403)),
    "upload of a stranger's key": ((401, 401, 401), (401, 401, 401)),
    "upload of another issuer": ((401, 401, 401), (403, 403, 403)),
}
PUBLIC = "http://files.test"


@dataclass
class Sealed:
    """A service with a public URL and two keys, a finished file, and its Ed25519 key."""

    here: Site
    file: str
    edwards: Key


@pytest.fixture
async def sealed(tmp_path: Path) -> AsyncIterator[Sealed]:
    """Audience is checked, and the key set has an HS256 and an EdDSA key."""
    secret, edwards = (new_key(alg, issuer="chat", now=time.time()) for alg in ("HS256", "EdDSA"))
    keys = KeyFile(tmp_path / "var" / "keys.json")
    await asyncio.to_thread(keys.update, lambda _: KeySet((edwards, secret)))
    async with site(tmp_path, public_url=PUBLIC) as here:
        yield Sealed(here, await here.upload(b"content", audience=PUBLIC), edwards)


def token(sealed: Sealed, kind: str) -> str | None:
    """A token of TOKENS."""
    here, now = sealed.here, instant(sealed.here)
    download = {"scope": "download", "fid": sealed.file, "jti": None, "max": None}
    ended = {"iat": now - 7200, "exp": now - 3600}
    match kind:
        case "none":
            return None
        case "upload":
            return forge(here.key, claims(here))
        case "download":
            return forge(here.key, claims(here, **download), typ="dl+jwt")
        case "service":
            scopes = ["files:read", "files:write", "links:mint"]
            return mint_service(here.key, audience=PUBLIC, scopes=scopes, now=now, expires_in=60)
        case "download of another file":
            return forge(here.key, claims(here, **download | {"fid": "f_" + "a" * 26}), typ="dl+jwt")
        case "upload, expired":
            return forge(here.key, claims(here, **ended))
        case "download, expired":
            return forge(here.key, claims(here, **download, **ended), typ="dl+jwt")
        case "upload for another service":
            return forge(here.key, claims(here, aud="http://other.test"))
        case "download for another service":
            return forge(here.key, claims(here, **download, aud="http://other.test"), typ="dl+jwt")
        case "upload typed as download":
            return forge(here.key, claims(here, fid=sealed.file), typ="dl+jwt")
        case "upload with a download's scope":
            return forge(here.key, claims(here, scope="download"))
        case "upload with two scopes":
            return forge(here.key, claims(here, scope=["upload", "download"]))
        case "upload of a stranger's key":
            return forge(here.key, claims(here), secret=b"s" * 32)
        case "upload of another issuer":
            return forge(here.key, claims(here, iss="mallory"))
    raise AssertionError(kind)


async def present(here: Site, request: str, file: str, text: str | None, credential: str) -> Answer:
    """The request with the token as `sig` or as Bearer."""
    method, template, headers = REQUESTS[request]
    path = template.format(file=file)
    if text is not None and credential == "sig":
        path = f"{path}?sig={text}"
    extra = {"Authorization": f"Bearer {text}"} if text is not None and credential == "bearer" else {}
    return await here.ask(method, path, dict(headers) | extra)


@pytest.mark.parametrize("credential", ["sig", "bearer"])
@pytest.mark.parametrize("kind", TOKENS)
async def test_A2_each_token_opens_its_own_door_only(sealed: Sealed, kind: str, credential: str) -> None:
    """Of all tokens only a good upload link creates and only the file's own download link reads."""
    before = traces(sealed.here)
    answers = {
        request: await present(sealed.here, request, sealed.file, token(sealed, kind), credential)
        for request in (*UPLOADS, *DOWNLOADS)
    }
    made, read = TOKENS[kind]
    assert {request: answer.status for request, answer in answers.items()} == dict(
        zip((*UPLOADS, *DOWNLOADS), (*made, *read), strict=True)
    )
    assert kind == "upload" or traces(sealed.here) == before


@pytest.mark.parametrize("kind", TOKENS)
async def test_A2_upload_url_is_the_capability(sealed: Sealed, kind: str) -> None:
    """Whoever has an upload's address may append, look and cancel; no token adds or takes anything."""
    here, text = sealed.here, token(sealed, kind)
    path = await here.create(5, here.link(audience=PUBLIC))
    sent = TUS | ({"Authorization": f"Bearer {text}"} if text else {})
    assert (await here.ask("HEAD", path, sent)).status == 200
    appended = await here.ask("PATCH", path, sent | {"Upload-Offset": "0", "Content-Type": OCTETS}, b"hello")
    assert appended.status == 204
    looked = await here.ask("GET", path, sent)
    assert (looked.status, looked.headers["Content-Type"]) == (200, "application/json")
    assert b"hello" not in looked.body
    assert (await here.ask("DELETE", path, sent)).status == 204


def confusions(sealed: Sealed) -> dict[str, str]:
    """Tokens that pass only where the token chooses how it is checked."""
    here, good = sealed.here, claims(sealed.here)
    public = sealed.edwards.verifier
    assert isinstance(public, Ed25519PublicKey)
    raw = public.public_bytes_raw()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    jwk = {"kty": "oct", "kid": here.key.kid, "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U"}
    return {
        "no algorithm, no signature": forge(here.key, good, alg="none", signature=b""),
        "None in capitals": forge(here.key, good, alg="None", signature=b""),
        "no algorithm, with a signature": forge(here.key, good, alg="none"),
        "no signature": forge(here.key, good, signature=b""),
        "HS512 with the secret": forge(here.key, good, alg="HS512"),
        "EdDSA named, HMAC made": forge(here.key, good, alg="EdDSA"),
        "HMAC with the public key": forge(sealed.edwards, good, secret=raw),
        "HMAC with the public key as PEM": forge(sealed.edwards, good, secret=pem),
        "HMAC with the public key, EdDSA named": forge(sealed.edwards, good, secret=raw, alg="EdDSA"),
        "the other key's id": forge(here.key, good, kid=sealed.edwards.kid),
        "an unknown key": forge(here.key, good, kid="k_unknown"),
        "no key": forge(here.key, good, kid=None),
        "a key as path": forge(here.key, good, kid="../../keys.json"),
        "a list of keys": forge(here.key, good, kid=[here.key.kid]),
        "its own key": forge(here.key, good, jwk=jwk, secret=b"secretsecretsecretsecretsecretse"),
        "a key to fetch": forge(here.key, good, jku="http://evil.test/jwks"),
        "a certificate to fetch": forge(here.key, good, x5u="http://evil.test/x5u"),
        "critical extensions": forge(here.key, good, crit=["exp"]),
        "not JSON": forge(here.key, b"not json"),
        "a list": forge(here.key, [good]),
        "another payload under the signature": _swapped(here, good),
    }


def _swapped(here: Site, good: dict[str, Any]) -> str:
    head, _, signature = forge(here.key, good).split(".")
    payload = forge(here.key, good | {"max": 2**40}).split(".")[1]
    return f"{head}.{payload}.{signature}"


async def test_A2_the_token_does_not_choose_how_it_is_checked(sealed: Sealed) -> None:
    """Algorithm confusion, foreign keys and forbidden headers are `bad-link`, and nothing is made."""
    before = traces(sealed.here)
    found = {}
    for name, text in confusions(sealed).items():
        answer = await present(sealed.here, "create", sealed.file, text, "sig")
        found[name] = (answer.status, answer.slug)
    assert found == dict.fromkeys(found, (401, "bad-link"))
    assert traces(sealed.here) == before


# --- the table of claims, as a client meets it ---------------------------------------------------

DIGEST = hashlib.sha256(b"").hexdigest()

#: claim -> wrong values of an upload link
WRONG_UPLOAD: Mapping[str, tuple[Any, ...]] = {
    "aud": (7, [], [7], {}),
    "iat": ("now", True, -1, 1e40),
    "nbf": ("now", True, -1),
    "exp": ("now", True, -1, 1),
    "jti": (7, "short", "x" * 129, "with space and more", "../../../../etc/passwd"),
    "max": (None, "1", 1.5, -1, True, 2**63),
    "size": ("1", 1.5, -1, True, 2**63, 2**30 + 1),
    "types": ([], "image/*", ["image"], ["*/*/*"], [7], ["image/png"] * 65),
    "sub": (7, "", "a b", "x" * 129, "a\nb"),
    "uses": (0, -1, "1", 1.5, True, 10**9),
    "fid": (7, "f_short", "f_" + "A" * 26, "../" + "a" * 25),
    "sha256": (7, DIGEST.upper(), DIGEST[:-1], DIGEST + "0"),
    "hold": (0, "1", 1.5, True, 2**63),
    "ttl": (0, "1", 1.5, True, 2**63),
    "ref": (7, "", "x" * 257, "a\nb"),
    "meta": (7, [], "{}", {"a": "x" * 1024}),
}
WRONG_DOWNLOAD: Mapping[str, tuple[Any, ...]] = {
    "jti": WRONG_UPLOAD["jti"],
    "fid": (None, *WRONG_UPLOAD["fid"]),
    "sub": WRONG_UPLOAD["sub"],
    "filename": (7, "", "x" * 256),
    "disposition": (7, "", "INLINE", "inline; x=y"),
    "exp": WRONG_UPLOAD["exp"],
}


@pytest.mark.parametrize("claim", WRONG_UPLOAD)
async def test_A2_wrong_claims_of_an_upload_link_make_nothing(here: Site, claim: str) -> None:
    """Every wrong value is 401 `bad-link` with the claim's name, by POST and by PUT, and leaves nothing."""
    before = traces(here)
    for value in WRONG_UPLOAD[claim]:
        changed = claims(here, **{claim: value})
        link = f"/files?sig={forge(here.key, changed)}"
        posted = await here.post(0, link)
        put = await here.ask("PUT", link, {}, b"hello")
        assert [(answer.status, answer.slug) for answer in (posted, put)] == [(401, "bad-link")] * 2, json.dumps(value)
        assert claim in posted.json["detail"]
    assert traces(here) == before


@pytest.mark.parametrize("claim", WRONG_DOWNLOAD)
async def test_A2_wrong_claims_of_a_download_link_read_nothing(here: Site, claim: str) -> None:
    """Every wrong value of a download link is refused with the claim's name."""
    file = await here.upload(b"content")
    good = {"scope": "download", "fid": file, "jti": None, "max": None}
    for value in WRONG_DOWNLOAD[claim]:
        text = forge(here.key, claims(here, **good | {claim: value}), typ="dl+jwt")
        answer = await here.ask("GET", f"/d/{file}?sig={text}")
        assert (answer.status, answer.slug) == (401, "bad-link"), json.dumps(value)
        assert claim in answer.json["detail"]


#: claims that are well formed and yet do not allow this creation: status, slug
NOT_ALLOWED: Mapping[str, tuple[dict[str, Any], int, str]] = {
    "over": ({"exp": -120, "iat": -7200}, 401, "link-expired"),
    "not yet": ({"nbf": 120}, 401, "bad-link"),
    "from the future": ({"iat": 120}, 401, "bad-link"),
    "too long a life": ({"exp": 2 * 86400}, 401, "bad-link"),
    "too small": ({"max": 9}, 413, "too-large"),
    "a smaller size": ({"size": 9}, 413, "too-large"),
    "a larger size": ({"size": 11}, 403, "length-mismatch"),
    "another type": ({"types": ["image/*"]}, 403, "type-refused"),
    "several files in one": ({"uses": 2, "fid": "f_" + "a" * 26}, 401, "bad-link"),
}


@pytest.mark.parametrize("case", NOT_ALLOWED)
async def test_A2_claims_that_do_not_allow_it_make_nothing(here: Site, case: str) -> None:
    """What a good link does not allow is refused with its own name and leaves nothing."""
    changes, status, slug = NOT_ALLOWED[case]
    now = instant(here)
    moved = {name: now + value if name in ("exp", "iat", "nbf") else value for name, value in changes.items()}
    before = traces(here)
    link = f"/files?sig={forge(here.key, claims(here, **moved))}"
    answer = await here.post(10, link, Upload_Metadata="filetype dGV4dC9wbGFpbg==")
    assert (answer.status, answer.slug) == (status, slug)
    assert traces(here) == before
