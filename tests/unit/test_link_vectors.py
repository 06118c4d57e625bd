"""The published vectors (docs/link-vectors.md) are what this service mints, accepts and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jwt
import pytest

from service.links import (
    KeySet,
    LinkRefusal,
    VerifiedUpload,
    mint_download,
    mint_service,
    mint_upload,
    verify_download,
    verify_service,
    verify_upload,
)
from service.model import FileId

PAGE = (Path(__file__).parents[2] / "docs" / "link-vectors.md").read_text(encoding="utf-8")


def block(heading: str) -> Any:
    match = re.search(rf"^## {heading}$.*?^```json$(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert match is not None
    return json.loads(match[1])


def stated(pattern: str) -> str:
    match = re.search(pattern, PAGE)
    assert match is not None
    return match[1]


KEYS = KeySet.parse(json.dumps(block("Keys")))
ACCEPTED = block("Accepted")
REFUSED = block("Refused")
NOW = int(stated(r"\| the clock \| `(\d+)`"))
AUDIENCE = stated(r"expected `aud` \| `([^`]+)`")
FILE_ID = FileId(stated(r"download link \| `([^`]+)`"))
SCOPE = stated(r"service token \| `([^`]+)`")
LIVES = dict(re.findall(r"(upload|download|service) (\d+) s", stated(r"(longest life.*)")))


def named(rows: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(row, id=row["name"]) for row in rows]


def verify(row: dict[str, Any]) -> Any:
    token, kind = row["token"], row["kind"]
    life = int(LIVES[kind])
    if kind == "upload":
        return verify_upload(token, KEYS, now=NOW, audience=AUDIENCE, max_life_seconds=life)
    if kind == "download":
        return verify_download(token, KEYS, now=NOW, audience=AUDIENCE, file_id=FILE_ID, max_life_seconds=life)
    return verify_service(token, KEYS, now=NOW, audience=AUDIENCE, scope=SCOPE, max_life_seconds=life)


def remint(row: dict[str, Any]) -> str:
    claims = row["claims"]
    key = KEYS.get(jwt.get_unverified_header(row["token"])["kid"])
    assert key is not None
    common = {"audience": claims["aud"], "now": claims["iat"], "expires_in": claims["exp"] - claims["iat"]}
    common["jti"] = claims.get("jti")
    if row["kind"] == "upload":
        return mint_upload(
            key,
            **common,
            max_size=claims["max"],
            size=claims.get("size"),
            types=claims.get("types", ()),
            owner=claims.get("sub"),
            uses=claims.get("uses", 1),
            file_id=claims.get("fid"),
            sha256=claims.get("sha256"),
            hold=claims.get("hold"),
            ttl=claims.get("ttl"),
            ref=claims.get("ref"),
            meta=claims.get("meta"),
        )
    if row["kind"] == "download":
        return mint_download(
            key,
            **common,
            file_id=claims["fid"],
            filename=claims.get("filename"),
            disposition=claims.get("disposition"),
            owner=claims.get("sub"),
        )
    return mint_service(key, **common, scopes=claims["scope"], subject=claims.get("sub"))


@pytest.mark.parametrize("row", named(ACCEPTED))
def test_accepted(row: dict[str, Any]) -> None:
    """Every accepted vector verifies, and says of itself whether it has expired."""
    verified = verify(row)
    if isinstance(verified, VerifiedUpload):
        assert (verified.terms.jti, verified.terms.max_size) == (row["claims"]["jti"], row["claims"]["max"])
        assert verified.expired is row.get("expired", False)


@pytest.mark.parametrize("row", named(ACCEPTED))
def test_payload(row: dict[str, Any]) -> None:
    """The claims shown are those in the token."""
    assert jwt.decode(row["token"], options={"verify_signature": False}) == row["claims"]


@pytest.mark.parametrize("row", named([row for row in ACCEPTED if row["reproducible"]]))
def test_reproducible(row: dict[str, Any]) -> None:
    """A reproducible vector is what we mint from its claims, byte for byte."""
    assert remint(row) == row["token"]


@pytest.mark.parametrize("row", named(REFUSED))
def test_refused(row: dict[str, Any]) -> None:
    """Every refused vector gets the slug, status and metric label shown."""
    with pytest.raises(LinkRefusal) as caught:
        verify(row)
    problem = caught.value.problem
    assert (problem.slug, problem.status, caught.value.result) == (row["slug"], row["status"], row["result"])


def test_the_page_covers_every_algorithm_and_kind() -> None:
    """There are accepted vectors for each algorithm and each kind of token."""
    algorithms = {jwt.get_unverified_header(row["token"])["alg"] for row in ACCEPTED}
    assert algorithms == {"EdDSA", "ES256", "HS256"}
    assert {row["kind"] for row in ACCEPTED} == {"upload", "download", "service"}
