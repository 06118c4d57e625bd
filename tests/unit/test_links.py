"""Links: what a token must be, claim by claim, and that nothing else gets through (lesson A2)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import warnings
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from service.claims import MAX_COUNT, MAX_LIFE_SECONDS
from service.keyfile import new_key
from service.links import (
    RESULTS,
    SERVICE_SCOPES,
    ClaimError,
    Key,
    KeySet,
    KeySetError,
    LinkRefusal,
    VerifiedDownload,
    VerifiedService,
    VerifiedUpload,
    download_url,
    mint_download,
    mint_service,
    mint_upload,
    upload_url,
    verify_download,
    verify_service,
    verify_upload,
)
from service.model import FileId, LinkTerms

NOW = 1_800_000_000
AUDIENCE = "https://files.example"
FILE_ID = FileId("f_" + "a2" * 13)
OTHER_FILE = FileId("f_" + "b3" * 13)
JTI = "abcdefghijklmnop"
DAY = 86_400

HS, ED, ES = (new_key(alg, issuer="chat", now=NOW) for alg in ("HS256", "EdDSA", "ES256"))
MAIL = new_key("HS256", issuer="mail", now=NOW)
KEYS = KeySet((HS, ED, ES, MAIL))

TYPES = {"upload": "upl+jwt", "download": "dl+jwt", "service": "svc+jwt"}
TIMES = {"iat": NOW, "nbf": NOW, "exp": NOW + 3600}
CLAIMS: dict[str, dict[str, Any]] = {
    "upload": {"iss": "chat", "aud": AUDIENCE, "scope": "upload", **TIMES, "jti": JTI, "max": 100},
    "download": {"iss": "chat", "aud": AUDIENCE, "scope": "download", **TIMES, "fid": FILE_ID},
    "service": {"iss": "chat", "aud": AUDIENCE, "scope": ["files:read"], **TIMES},
}


def sign(claims: Any, *, key: Key = HS, **header: Any) -> str:
    """A token as a foreign library would make it, with any header and any payload."""
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    header = {"kid": key.kid, "typ": "upl+jwt", **header}
    with warnings.catch_warnings(action="ignore"):
        assert key.signer is not None
        return jwt.PyJWS().encode(payload, key.signer, algorithm=key.alg, headers=header)


def token(kind: str, **changes: Any) -> str:
    """A good token of the kind, with some claims changed, or left out where None is given."""
    claims = {name: value for name, value in (CLAIMS[kind] | changes).items() if value is not None}
    return sign(claims, typ=TYPES[kind])


def upload(text: str, *, now: float = NOW, audience: str | None = AUDIENCE, keys: KeySet = KEYS) -> VerifiedUpload:
    return verify_upload(text, keys, now=now, audience=audience, max_life_seconds=DAY)


def download(text: str, *, now: float = NOW, audience: str | None = AUDIENCE) -> VerifiedDownload:
    return verify_download(text, KEYS, now=now, audience=audience, file_id=FILE_ID, max_life_seconds=7 * DAY)


def service(text: str, *, now: float = NOW, scope: str = "files:read") -> VerifiedService:
    return verify_service(text, KEYS, now=now, audience=AUDIENCE, scope=scope, max_life_seconds=DAY)


VERIFIERS: dict[str, Any] = {"upload": upload, "download": download, "service": service}


def refusal(kind: str, text: str, **options: Any) -> LinkRefusal:
    with pytest.raises(LinkRefusal) as caught:
        VERIFIERS[kind](text, **options)
    return caught.value


def outcome(kind: str, text: str, **options: Any) -> tuple[str, int, str]:
    refused = refusal(kind, text, **options)
    return refused.problem.slug, refused.problem.status, refused.result


BAD_CLAIMS = ("bad-link", 401, "bad-claims")
WRONG_SCOPE = ("wrong-scope", 403, "wrong-scope")


# What comes out of a good link.


@pytest.mark.parametrize("key", [HS, ED, ES], ids=["HS256", "EdDSA", "ES256"])
def test_a_minted_upload_link_verifies_whole(key: Key) -> None:
    """Every term that is minted comes out again, with each algorithm."""
    minted = mint_upload(
        key, audience=AUDIENCE, jti=JTI, now=NOW + 0.9, expires_in=60, max_size=9, size=7, types=["Image/*"],
        owner="u:1@x", file_id=FILE_ID, sha256="ab" * 32, hold=1, ttl=2, ref="chat:7/ü", meta={"a": [1, None]},
    )  # fmt: skip
    verified = upload(minted)
    assert verified.terms == LinkTerms(
        issuer="chat", jti=JTI, uses=1, owner="u:1@x", max_size=9, size=7, types=("image/*",), file_id=FILE_ID,
        sha256="ab" * 32, hold_seconds=1, ttl_seconds=2, ref="chat:7/ü", meta={"a": [1, None]}, expires_at=NOW + 60,
    )  # fmt: skip
    assert (verified.kid, verified.expired) == (key.kid, False)
    assert verified.jti_hash == hashlib.sha256(JTI.encode()).hexdigest()[:16]


@pytest.mark.parametrize("key", [HS, ED, ES], ids=["HS256", "EdDSA", "ES256"])
def test_a_minted_download_link_verifies_whole(key: Key) -> None:
    """Every term that is minted comes out again, with each algorithm."""
    minted = mint_download(
        key, audience=AUDIENCE, file_id=FILE_ID, now=NOW, expires_in=60, jti=JTI, filename="ü/…", disposition="inline",
        owner="u1",
    )  # fmt: skip
    verified = download(minted)
    assert (verified.file_id, verified.filename, verified.disposition, verified.owner, verified.expires_at) == (
        FILE_ID, "ü/…", "inline", "u1", NOW + 60
    )  # fmt: skip


def test_a_download_link_is_an_attachment_unless_it_says_inline() -> None:
    """Without the claim nothing is shown in the browser."""
    assert download(token("download")).disposition == "attachment"


@pytest.mark.parametrize("scope", [["files:read", "x:y"], "x:y files:read"], ids=["list", "text"])
def test_a_service_token_has_a_list_of_scopes(scope: object) -> None:
    """Both spellings of the list work, and unknown scopes do no harm."""
    assert service(token("service", scope=scope)).scopes == {"files:read", "x:y"}


@pytest.mark.parametrize("scope", SERVICE_SCOPES)
def test_a_service_token_minted_for_all_scopes_has_each(scope: str) -> None:
    """Each known scope can be minted and asked for."""
    minted = mint_service(HS, audience=AUDIENCE, scopes=SERVICE_SCOPES, now=NOW, expires_in=60, subject="b")
    assert service(minted, scope=scope).subject == "b"


def test_what_a_revocation_names_is_told_of_every_kind_of_token() -> None:
    """Issuer, jti and the instant of issue come out of each; no `repr` of what is kept shows the jti."""
    made = upload(token("upload"))
    assert (made.terms.issuer, made.terms.jti, made.issued_at) == ("chat", JTI, NOW)
    for verified in (download(token("download", jti=JTI)), service(token("service", jti=JTI))):
        assert (verified.issuer, verified.jti, verified.issued_at) == ("chat", JTI, NOW)
        assert JTI not in repr(verified)
    assert download(token("download")).jti is None


def test_unknown_claims_are_ignored() -> None:
    """A claim of the issuer's own changes nothing."""
    assert upload(token("upload", extra={"a": 1})) == upload(token("upload"))


def test_equal_arguments_mint_equal_tokens() -> None:
    """Minting draws no random number and reads no clock."""
    pair = {mint_upload(ED, audience=AUDIENCE, jti=JTI, now=NOW, expires_in=9, max_size=1) for _ in range(2)}
    assert len(pair) == 1


# Every claim of the table, wrong in each way.

NOT_TEXT: list[Any] = [7, True, [], {}, ["a"]]
NOT_INTEGERS: list[Any] = ["1", 1.0, True, [], {}, -1, MAX_COUNT + 1, 10**30]
NOT_LIVES: list[Any] = [*NOT_INTEGERS, 0, MAX_LIFE_SECONDS + 1]
NOT_INSTANTS: list[Any] = ["1", True, [], {}, -1, 1 << 53, 10**400]
DEEP = json.loads("[" * 400 + "]" * 400)
COMMON: dict[str, list[Any]] = {
    "aud": [*NOT_TEXT[:2], [], {}, [1], [AUDIENCE, 1]],
    "iat": NOT_INSTANTS,
    "nbf": NOT_INSTANTS,
    "exp": [*NOT_INSTANTS, NOW, NOW - 1],
    "jti": [*NOT_TEXT, "", "a" * 15, "a" * 129, "a" * 15 + "!", "a" * 16 + "\n", "ä" * 16],
    "sub": [*NOT_TEXT, "", "a" * 129, "a b", "ä", "a/b", "a\n"],
}
WRONG: dict[str, dict[str, list[Any]]] = {
    "upload": COMMON | {
        "max": NOT_INTEGERS,
        "size": [*NOT_INTEGERS, 101],
        "types": ["image/*", 7, {}, [], [7], [""], ["image"], ["*/*"], ["image/"], ["image/p*"], ["a/b; c=d"], ["ä/b"],
                  ["a/b\n"], ["a/b"] * 65],
        "uses": [*NOT_INTEGERS, 0, 1001],
        "fid": [*NOT_TEXT, "", FILE_ID[:-1], FILE_ID + "a", FILE_ID.upper(), "u" + FILE_ID[1:], FILE_ID + "\n"],
        "sha256": [*NOT_TEXT, "", "ab" * 31, "ab" * 33, "AB" * 32, "xy" * 32],
        "hold": NOT_LIVES,
        "ttl": NOT_LIVES,
        "ref": [*NOT_TEXT, "", "a" * 257, "a\nb", "a\x00", "\ud800", "a\u202eb"],
        "meta": ["{}", 7, True, [], {"a": "x" * 1017}, {"a": DEEP, "b": "\ud800"}, {"a": "\ud800"},
                 {"x" * 600 + "ä" * 215: 1}],
    },
    "download": COMMON | {
        "fid": [*NOT_TEXT, "", FILE_ID[:-1], FILE_ID.upper()],
        "filename": [*NOT_TEXT, "", "a" * 256, "\ud800"],
        "disposition": [*NOT_TEXT, "", "Inline", "form-data", "inline\n"],
    },
    "service": COMMON | {"scope": [7, True, {}, [7], ["files:read", 7]]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "claim", "value"),
    [
        pytest.param(kind, claim, value, id=f"{kind}-{claim}-{number}")
        for kind, claims in WRONG.items()
        for claim, values in claims.items()
        for number, value in enumerate(values)
    ],
)
def test_a_wrong_claim_is_refused(kind: str, claim: str, value: object) -> None:
    """A claim of the wrong type or out of range is `bad-link`, and the detail names the claim."""
    refused = refusal(kind, sign({**CLAIMS[kind], claim: value}, typ=TYPES[kind]))
    assert (refused.problem.slug, refused.problem.status, refused.result) == BAD_CLAIMS
    assert f"{claim} must" in refused.problem.detail


@pytest.mark.parametrize("kind", TYPES)
def test_null_is_not_an_absent_claim(kind: str) -> None:
    """A claim that is there but null is of the wrong type."""
    assert outcome(kind, sign({**CLAIMS[kind], "sub": None}, typ=TYPES[kind])) == BAD_CLAIMS


@pytest.mark.parametrize(
    ("kind", "claim"),
    [*(("upload", c) for c in ("aud", "exp", "iat", "jti", "max")), *(("download", c) for c in ("aud", "exp", "fid"))],
)
def test_a_missing_claim_is_refused(kind: str, claim: str) -> None:
    """Without a claim that its kind needs, a link is `bad-link` and the detail says which."""
    refused = refusal(kind, token(kind, **{claim: None}))
    assert (refused.problem.slug, refused.result) == ("bad-link", "bad-claims")
    assert f"{claim} is missing" in refused.problem.detail


RIGHT: dict[str, list[Any]] = {
    "max": [100, MAX_COUNT],
    "size": [0, 100],
    "types": [["image/*"], ["application/vnd.a+b-c.d", "text/plain"], ["a/b"] * 64],
    "uses": [1, 2, 1000],
    "jti": ["a" * 16, "-_" * 64, "6f1c9a52-5c0b-4d5e-9d2c-0b1f2a3c4d5e"],
    "sub": ["a", "A9._:@-" * 18],
    "fid": [FILE_ID],
    "sha256": ["0f" * 32],
    "hold": [1, MAX_LIFE_SECONDS],
    "ttl": [1, MAX_LIFE_SECONDS],
    "ref": ["a", "ä" * 256, "chat:7/msg:99 ok"],
    "meta": [{}, {"a": "x" * 1016}, {"ä": {"b": [1.5, None, True]}}],
    "nbf": [None, 0, NOW + 0.5],
    "exp": [NOW + 1, NOW + 0.25, NOW + DAY],
}


@pytest.mark.parametrize(
    ("claim", "value"),
    [pytest.param(c, v, id=f"{c}-{number}") for c, values in RIGHT.items() for number, v in enumerate(values)],
)
def test_a_claim_at_its_limit_is_accepted(claim: str, value: object) -> None:
    """The first and the last value of each range are good."""
    assert upload(token("upload", **{claim: value})).kid == HS.kid


def test_a_link_that_fixes_the_file_makes_one_upload() -> None:
    """`fid` with more than one use could never be kept, and is refused."""
    assert outcome("upload", token("upload", fid=FILE_ID, uses=2)) == BAD_CLAIMS


# Kind, audience, issuer.


@pytest.mark.parametrize("asked", TYPES)
@pytest.mark.parametrize("given_", TYPES)
@pytest.mark.parametrize("typ", TYPES)
def test_a2_token_kind_matrix(asked: str, given_: str, typ: str) -> None:
    """A2: a token serves the one kind that both its typ and its scope name."""
    everything = {"jti": JTI, "max": 1, "fid": FILE_ID}
    text = sign({**everything, **CLAIMS[given_]}, typ=TYPES[typ])
    if asked == given_ == typ:
        VERIFIERS[asked](text)
    else:
        assert outcome(asked, text) == WRONG_SCOPE


@pytest.mark.parametrize("typ", [None, "", "JWT", "UPL+JWT", "application/upl+jwt", 7, ["upl+jwt"]])
def test_another_typ_is_wrong_scope(typ: object) -> None:
    """The typ is exact."""
    assert outcome("upload", sign(CLAIMS["upload"], typ=typ)) == WRONG_SCOPE


@pytest.mark.parametrize("scope", [None, "", "Upload", "upload ", "upload download", ["upload"], 7])
def test_another_scope_is_wrong_scope(scope: object) -> None:
    """The scope is exact."""
    assert outcome("upload", token("upload", scope=scope)) == WRONG_SCOPE


@pytest.mark.parametrize("scope", ["files", "files:rea", "files:read:x", [], ""])
def test_a_service_scope_is_a_whole_word(scope: object) -> None:
    """No scope includes another by its beginning."""
    assert outcome("service", token("service", scope=scope)) == WRONG_SCOPE


def test_a_download_link_is_for_one_file() -> None:
    """Another file's link is `wrong-scope`."""
    assert outcome("download", token("download", fid=OTHER_FILE)) == WRONG_SCOPE


@pytest.mark.parametrize("audience", ["https://files.example/", "https://FILES.example", "", ["https://a.example"]])
def test_another_audience_is_refused(audience: object) -> None:
    """The audience is exact."""
    assert outcome("upload", token("upload", aud=audience)) == ("bad-link", 401, "wrong-audience")


def test_one_of_several_audiences_is_enough() -> None:
    """RFC 7519 4.1.3: `aud` may be a list."""
    assert upload(token("upload", aud=["https://a.example", AUDIENCE])).kid == HS.kid


def test_without_a_public_url_any_audience_is_good() -> None:
    """`aud` is compared only where the service knows its own address."""
    assert upload(token("upload", aud="https://elsewhere.example"), audience=None).kid == HS.kid


@pytest.mark.parametrize("issuer", ["mail", "", None, 7, ["chat"]])
def test_another_issuer_is_refused(issuer: object) -> None:
    """A key speaks for its own issuer only."""
    assert outcome("upload", token("upload", iss=issuer)) == ("bad-link", 401, "wrong-issuer")


# Times.


def test_an_expired_upload_link_is_marked_and_not_refused() -> None:
    """T-05C: the terms of an expired upload link come out, from 60 s after exp marked as expired."""
    text = token("upload")
    assert [upload(text, now=NOW + 3600 + s).expired for s in (-1, 59, 60, 10**9)] == [False, False, True, True]


def test_g5_an_expired_download_link_is_403() -> None:
    """G5: a range request after exp (and the leeway) is 403 `link-expired`, which asks for a new link."""
    text = token("download")
    assert download(text, now=NOW + 3659).file_id == FILE_ID
    assert outcome("download", text, now=NOW + 3660) == ("link-expired", 403, "expired")


def test_an_expired_service_token_is_refused() -> None:
    """A service token ends with exp and the leeway."""
    assert outcome("service", token("service"), now=NOW + 3660) == ("link-expired", 401, "expired")


@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_a_link_from_the_future_is_refused(claim: str) -> None:
    """A clock may be 60 s ahead, and no more."""
    assert upload(token("upload", **{claim: NOW + 60})).kid == HS.kid
    assert outcome("upload", token("upload", **{claim: NOW + 61})) == ("bad-link", 401, "not-yet-valid")


@pytest.mark.parametrize(("kind", "longest"), [("upload", DAY), ("download", 7 * DAY), ("service", DAY)])
def test_the_longest_life(kind: str, longest: int) -> None:
    """`exp` - `iat` may be as long as the setting says, and no second longer."""
    VERIFIERS[kind](token(kind, exp=NOW + longest))
    assert outcome(kind, token(kind, exp=NOW + longest + 1)) == BAD_CLAIMS


# Form, header, key, signature.


def part(value: object) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


GOOD = token("upload")
HEADER, PAYLOAD, SIGNATURE = GOOD.split(".")


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a.b.c",
        "..",
        GOOD + ".",
        GOOD + "=",
        GOOD + "\n",
        " " + GOOD,
        f"{HEADER}.{PAYLOAD}",
        f"{HEADER}.{PAYLOAD}.{SIGNATURE}.{SIGNATURE}",
        f"{part([1])}.{PAYLOAD}.{SIGNATURE}",
        f"{part(b'{')}.{PAYLOAD}.{SIGNATURE}",
        f"{part(b'[' * 2000)}.{PAYLOAD}.{SIGNATURE}",
        sign([1]),
        sign(b"null"),
        sign(b"\xff"),
        sign(b"[" * 2000),
        sign(b'{"max":' + b"9" * 2500 + b"x}"),
        sign(json.dumps({**CLAIMS["upload"], "max": float("inf")}).encode()),
        "ü" * 20,
        "\ud800.a.a",
        "\x00",
    ],
    ids=itertools.count(),
)
def test_a_malformed_token_is_refused(text: str) -> None:
    """What is no compact JWS with a JSON object in it is `bad-link`."""
    assert outcome("upload", text) == ("bad-link", 401, "malformed")


def test_no_token_says_how_to_send_one() -> None:
    """The answer to a request without a token names both ways to send it."""
    refused = refusal("upload", "")
    assert refused.result == "missing"
    assert "?sig=" in refused.problem.detail
    assert "Bearer" in refused.problem.detail


def test_a_token_over_4_kib_is_refused_unread() -> None:
    """4097 bytes are refused for their number alone, 4096 are not."""
    claims = CLAIMS["upload"] | {"pad": ""}
    longest = next(
        text for n in range(2500, 3200) if len(text := sign({**claims, "pad": "x" * n})) in (4095, 4096)
    )  # fmt: skip
    assert upload(longest).kid == HS.kid
    assert "4096" in refusal("upload", "a" * 4097).problem.detail


@pytest.mark.parametrize("name", ["jku", "x5u", "jwk", "crit"])
@pytest.mark.parametrize("value", [None, "", ["exp"], {"kty": "oct"}])
def test_a_header_that_points_to_keys_is_refused(name: str, value: object) -> None:
    """`jku`, `x5u`, `jwk` and `crit` are refused whatever their value, also on a good signature."""
    header = part({"alg": "HS256", "kid": HS.kid, "typ": "upl+jwt", name: value})
    signature = hmac.digest(secret(HS), f"{header}.{PAYLOAD}".encode(), "sha256")
    assert outcome("upload", f"{header}.{PAYLOAD}.{part(signature)}") == ("bad-link", 401, "malformed")


def secret(key: Key) -> bytes:
    assert isinstance(key.signer, bytes)
    return key.signer


# the key is made anew in each process: its id is no part of the test's name
@pytest.mark.parametrize("kid", ["", "nobody", HS.kid + " ", HS.kid.upper()], ids=["none", "other", "space", "upper"])
def test_an_unknown_kid_is_refused(kid: str) -> None:
    """There is no default key."""
    assert outcome("upload", sign(CLAIMS["upload"], kid=kid)) == ("bad-link", 401, "unknown-key")


@pytest.mark.parametrize("kid", [None, 7, [], {"a": 1}])
def test_a_kid_that_is_no_text_is_refused(kid: object) -> None:
    """A kid of another type is refused, not looked up."""
    header = part({"alg": "HS256", "kid": kid, "typ": "upl+jwt"})
    assert refusal("upload", f"{header}.{PAYLOAD}.{SIGNATURE}").problem.slug == "bad-link"


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", None, "HS384", "HS512", "RS256", "ES256", 7])
def test_the_alg_is_the_one_of_the_key(alg: object) -> None:
    """`none` and every other algorithm are refused before the signature is looked at."""
    header = part({"alg": alg, "kid": HS.kid, "typ": "upl+jwt"})
    for signature in ("", SIGNATURE):
        assert outcome("upload", f"{header}.{PAYLOAD}.{signature}") == ("bad-link", 401, "wrong-algorithm")


def public_forms(key: Key) -> list[bytes]:
    assert not isinstance(key.verifier, bytes)
    pem = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    der = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    x = base64.urlsafe_b64decode(key.jwk["x"] + "=")
    jwk = {name: value for name, value in key.jwk.items() if name != "d"}
    return [key.verifier.public_bytes(*pem), key.verifier.public_bytes(*der), x, json.dumps(jwk).encode()]


@pytest.mark.parametrize("form", range(4), ids=["PEM", "DER", "raw", "JWK"])
@pytest.mark.parametrize("key", [ED, ES], ids=["EdDSA", "ES256"])
def test_a_public_key_is_no_secret(key: Key, form: int) -> None:
    """Algorithm confusion: HS256 under the public key of an asymmetric one, in any form, is refused."""
    header = part({"alg": "HS256", "kid": key.kid, "typ": "upl+jwt"})
    signature = hmac.digest(public_forms(key)[form], f"{header}.{PAYLOAD}".encode(), "sha256")
    assert outcome("upload", f"{header}.{PAYLOAD}.{part(signature)}") == ("bad-link", 401, "wrong-algorithm")


@pytest.mark.parametrize("named", [HS, ED, ES, MAIL], ids=["HS256", "EdDSA", "ES256", "mail"])
@pytest.mark.parametrize("signer", [HS, ED, ES, MAIL], ids=["HS256", "EdDSA", "ES256", "mail"])
def test_only_the_named_key_may_have_signed(named: Key, signer: Key) -> None:
    """A signature of any key but the one that kid names is refused, under either key's alg."""
    claims = {**CLAIMS["upload"], "iss": named.issuer}
    text = sign(claims, key=signer, kid=named.kid)
    if named is signer:
        assert upload(text).kid == named.kid
        return
    assert refusal("upload", text).result in ("wrong-algorithm", "bad-signature")
    header = part({"alg": named.alg, "kid": named.kid, "typ": "upl+jwt"})
    relabelled = ".".join([header, *text.split(".")[1:]])
    assert outcome("upload", relabelled) == ("bad-link", 401, "bad-signature")


@pytest.mark.parametrize("key", [HS, ED, ES], ids=["HS256", "EdDSA", "ES256"])
@pytest.mark.parametrize("signature", [b"", b"\x00", b"\x00" * 32, b"\x00" * 64, b"\xff" * 64, b"\x00" * 65])
def test_a_degenerate_signature_is_refused(key: Key, signature: bytes) -> None:
    """No constant is a signature (for ECDSA: r = s = 0)."""
    header, payload, _ = sign(CLAIMS["upload"], key=key).split(".")
    assert refusal("upload", f"{header}.{payload}.{part(signature)}").result in ("bad-signature", "malformed")


def test_a_retired_key_verifies_and_a_revoked_one_does_not() -> None:
    """Links of a retired key live on; those of a revoked one end at once."""
    retired = KEYS.retire(HS.kid)
    assert upload(GOOD, keys=retired).kid == HS.kid
    assert outcome("upload", GOOD, keys=retired.retire(HS.kid, revoke=True)) == ("bad-link", 401, "revoked-key")


def test_refusals_tell_the_key_only_when_it_is_ours() -> None:
    """`kid` is fit for a metric label: None until the token named a key of the set."""
    assert refusal("upload", sign(CLAIMS["upload"], kid="intruder")).kid is None
    assert refusal("upload", token("upload", max=-1)).kid == HS.kid


@pytest.mark.parametrize(
    "text",
    [
        sign(CLAIMS["upload"], kid="canary"),
        sign(CLAIMS["upload"], typ="canary"),
        sign({**CLAIMS["upload"], "canary": 1}, key=MAIL),
        *(token("upload", **{claim: "canary"}) for claim in ("iss", "aud", "scope", "jti", "max", "fid", "meta")),
    ],
    ids=itertools.count(),
)
def test_a_refusal_never_echoes_the_token(text: str) -> None:
    """No text of a refusal has anything in it that the token says."""
    assert "canary" not in str(refusal("upload", text))


# Minting.


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"max_size": -1}, "max"),
        ({"size": 11}, "size"),
        ({"uses": 0}, "uses"),
        ({"uses": 2, "file_id": FILE_ID}, "uses"),
        ({"types": ["image"]}, "types"),
        ({"jti": "short"}, "jti"),
        ({"expires_in": 0}, "exp"),
        ({"expires_in": -5}, "exp"),
        ({"hold": 0}, "hold"),
        ({"meta": {"a": float("nan")}}, "meta"),
        ({"meta": {"a": "x" * 2000}}, "meta"),
        ({"types": ["application/" + "x" * 120] * 40}, "the claims make a token"),
    ],
)
def test_minting_refuses_what_verifying_would(changes: dict[str, Any], claim: str) -> None:
    """A wrong argument is a ClaimError that begins with the claim's name."""
    arguments: dict[str, Any] = {"audience": AUDIENCE, "jti": JTI, "now": NOW, "expires_in": 60, "max_size": 10}
    with pytest.raises(ClaimError, match=f"^{claim}"):
        mint_upload(HS, **(arguments | changes))


def test_a_service_token_is_minted_with_known_scopes_only() -> None:
    """A misspelt scope is a ClaimError, and so is none."""
    for scopes in ([], ["files:raed"]):
        with pytest.raises(ClaimError, match="^scope must"):
            mint_service(HS, audience=AUDIENCE, scopes=scopes, now=NOW, expires_in=60)


@pytest.mark.parametrize("revoke", [False, True])
def test_a_retired_key_does_not_sign(revoke: bool) -> None:
    """Minting with a key that is not active is refused."""
    key = KEYS.retire(HS.kid, revoke=revoke).get(HS.kid)
    assert key is not None
    with pytest.raises(KeySetError, match="cannot sign"):
        mint_download(key, audience=AUDIENCE, file_id=FILE_ID, now=NOW, expires_in=60)


@pytest.mark.parametrize(
    ("filename", "path"),
    [
        (None, ""),
        ("a.png", "/a.png"),
        ("a b/ü?#%.png", "/a%20b%2F%C3%BC%3F%23%25.png"),
        ("manifest", ""),
        (".", ""),
        ("..", ""),
    ],
)
def test_download_urls(filename: str | None, path: str) -> None:
    """The name is percent-encoded, and left out where it would mean another address."""
    assert download_url(AUDIENCE, FILE_ID, "T", filename) == f"{AUDIENCE}/d/{FILE_ID}{path}?sig=T"


def test_upload_urls() -> None:
    """An upload link is the constant address with the token."""
    assert upload_url("https://x.example/prefix", "T") == "https://x.example/prefix/files?sig=T"


# Whatever comes.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(sorted({name for claims in WRONG.values() for name in claims} | {"iss", "scope"}))


def refused_or_good(text: str) -> None:
    for kind in TYPES:
        refused = None
        try:
            VERIFIERS[kind](text)
        except LinkRefusal as refusal:
            refused = refusal
        assert refused is None or (refused.result in RESULTS and refused.problem.status in (401, 403))


@given(st.text() | st.binary().map(lambda octets: octets.decode("latin-1")))
def test_any_text_is_refused(text: str) -> None:
    """No text raises anything but a LinkRefusal."""
    refused_or_good(text)


@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=80))
def test_any_three_segments_are_refused(header: bytes, payload: bytes, signature: bytes) -> None:
    """No bytes in the shape of a token raise anything but a LinkRefusal."""
    refused_or_good(".".join(map(part, (header, payload, signature))))


@given(st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "zip", "jwk"]), JSON))
def test_any_header_is_refused(changes: dict[str, Any]) -> None:
    """No header raises anything but a LinkRefusal."""
    header = {"alg": "HS256", "kid": HS.kid, "typ": "upl+jwt", **changes}
    signing_input = f"{part(header)}.{PAYLOAD}"
    refused_or_good(f"{signing_input}.{part(hmac.digest(secret(HS), signing_input.encode(), 'sha256'))}")


@given(st.sampled_from(sorted(TYPES)), st.dictionaries(NAMES, JSON, max_size=4))
def test_any_signed_claims_are_good_or_refused(kind: str, changes: dict[str, Any]) -> None:
    """No signed payload raises anything but a LinkRefusal."""
    refused_or_good(sign({**CLAIMS[kind], **changes}, typ=TYPES[kind]))


@given(st.integers(0, len(GOOD) - 1), st.sampled_from("ABCxyz019-_.="))
def test_any_changed_character_is_refused(position: int, character: str) -> None:
    """A token with one character changed verifies only if it decodes to the same bytes."""
    changed = GOOD[:position] + character + GOOD[position + 1 :]
    try:
        assert upload(changed) == upload(GOOD)
        assert position == len(GOOD) - 1 or changed == GOOD
    except LinkRefusal:
        pass
