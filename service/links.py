"""Signed links: mint and verify the tokens of contract section 4.

A token is a JWT (RFC 7519) as compact JWS. PyJWT checks the signature; every other rule is here,
in this order, and the first that fails is the answer:

1. size and shape, before anything is parsed;
2. header: no `jku`, `x5u`, `jwk`, `crit`; a known `kid` that is not revoked; the `alg` its key pins;
3. signature;
4. `typ`, `iss`, `scope`;
5. type and range of every claim (`claims`); unknown claims are ignored;
6. `aud`, and the longest life;
7. times against `now`, with 60 s of leeway.

An expired upload token is not refused here: its replay must still find the upload it made (T-05C),
so `VerifiedUpload.expired` leaves that to the use-case. Refusals never echo what the token says.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal, NoReturn, TypeAlias, get_args
from urllib.parse import quote

import jwt

from service.claims import DOWNLOAD, SERVICE, UPLOAD, ClaimError, Table, dump, read
from service.keyset import Key, KeySet, KeySetError, KeyState
from service.model import FileId, LinkTerms
from service.protocol.problems import Problem, Refusal

__all__ = [
    "RESULTS", "SERVICE_SCOPES", "ClaimError", "Key", "KeySet", "KeySetError", "KeyState", "LinkRefusal", "Result",
    "VerifiedDownload", "VerifiedService", "VerifiedUpload", "download_url", "hash_jti", "mint_download",
    "mint_service", "mint_upload", "upload_url", "verify_download", "verify_service", "verify_upload",
]  # fmt: skip

MAX_TOKEN_BYTES: Final = 4096
LEEWAY_SECONDS: Final = 60
SERVICE_SCOPES: Final = ("links:mint", "files:read", "files:write", "events:read", "owners:erase")

Disposition: TypeAlias = Literal["inline", "attachment"]
#: label values of attachd_token_verifications_total
Result: TypeAlias = Literal[
    "ok", "expired", "missing", "malformed", "unknown-key", "revoked-key", "wrong-algorithm", "bad-signature",
    "wrong-issuer", "wrong-scope", "wrong-audience", "bad-claims", "not-yet-valid", "revoked",
]  # fmt: skip
RESULTS: Final[tuple[Result, ...]] = get_args(Result)

_JWS: Final = jwt.PyJWS(algorithms=["EdDSA", "ES256", "HS256"])
_TYPES: Final = {"upload": "upl+jwt", "download": "dl+jwt", "service": "svc+jwt"}
_FORBIDDEN: Final = ("jku", "x5u", "jwk", "crit")
_COMPACT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")


class LinkRefusal(Refusal):
    """A token is refused. `result` is the metric's label; `kid` is set once it names a key of ours."""

    def __init__(self, problem: Problem, result: Result, kid: str | None = None) -> None:
        super().__init__(problem)
        self.result: Result = result
        self.kid = kid


@dataclass(frozen=True, slots=True)
class VerifiedUpload:
    """An upload link that we trust; `expired` ones are good for replays only."""

    terms: LinkTerms
    kid: str
    jti_hash: str
    expired: bool
    issued_at: float = 0.0


@dataclass(frozen=True, slots=True)
class VerifiedDownload:
    """A download link that we trust. `jti_hash`, which is what logs may show, is empty where the link has no jti."""

    file_id: FileId
    filename: str | None
    disposition: Disposition
    owner: str | None
    jti_hash: str
    kid: str
    expires_at: int
    issuer: str = ""
    jti: str | None = field(default=None, repr=False)
    issued_at: float = 0.0


@dataclass(frozen=True, slots=True)
class VerifiedService:
    """A service token that we trust and that has the scope asked for."""

    issuer: str
    scopes: frozenset[str]
    subject: str | None
    jti_hash: str
    kid: str
    expires_at: int
    jti: str | None = field(default=None, repr=False)
    issued_at: float = 0.0


# Verifying.


class _Verifier:
    """One token on its way through the checks. Once made, signature and key are good."""

    def __init__(self, token: str, keys: KeySet) -> None:
        self._kid: str | None = None
        header = self._header(token)
        self.key = key = self._pinned(header, keys)
        try:
            payload = _JWS.decode_complete(token, key.verifier, algorithms=[key.alg])["payload"]
        except jwt.InvalidSignatureError:
            self.refuse("bad-signature", "The link's signature is not valid.")
        except jwt.PyJWTError:
            self.refuse("malformed", "The link is not a well-formed token.")
        try:
            claims = json.loads(payload, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            claims = None
        if not isinstance(claims, dict):
            self.refuse("malformed", "The link's payload is not a JSON object.")
        self.typ = header.get("typ")
        self.claims: dict[str, Any] = claims

    def refuse(self, result: Result, detail: str, slug: str = "bad-link", status: int = 0) -> NoReturn:
        raise LinkRefusal(Problem(slug, detail, status=status), result, self._kid) from None

    def _header(self, token: str) -> Mapping[str, Any]:
        if not token:
            self.refuse("missing", "Send the link's token as ?sig= or as Authorization: Bearer.")
        if len(token) > MAX_TOKEN_BYTES:
            self.refuse("malformed", f"The link's token is longer than {MAX_TOKEN_BYTES} bytes.")
        # The signature may be empty in form only, so that `none` is told apart from garbage.
        if not _COMPACT.fullmatch(token):
            self.refuse("malformed", "The link's token is not three base64url segments joined by dots.")
        try:
            header = _header_of(token.partition(".")[0])
        except jwt.PyJWTError:
            self.refuse("malformed", "The link's token has no valid header.")
        for name in _FORBIDDEN:
            if name in header:
                self.refuse("malformed", f"The link's header must not have {name}.")
        return header

    def _pinned(self, header: Mapping[str, Any], keys: KeySet) -> Key:
        kid = header.get("kid")
        key = keys.get(kid) if isinstance(kid, str) else None
        if key is None:
            self.refuse("unknown-key", "The link's kid names no key of this service.")
        self._kid = key.kid
        if key.state is KeyState.REVOKED:
            self.refuse("revoked-key", "The link's key has been revoked; ask for a new link.")
        if header.get("alg") != key.alg:
            self.refuse("wrong-algorithm", f"The link's alg is not the one of its key, {key.alg}.")
        return key

    def check(
        self,
        kind: str,
        table: Table,
        *,
        now: float,
        audience: str | None,
        max_life_seconds: float,
    ) -> tuple[dict[str, Any], bool]:
        """The claims of a token of this kind, and whether it has expired."""
        if self.typ != _TYPES[kind]:
            self.wrong_scope(f"The token's typ is not {_TYPES[kind]}.")
        if self.claims.get("iss") != self.key.issuer:
            self.refuse("wrong-issuer", "The link's iss is not the issuer of its key.")
        if kind != "service" and self.claims.get("scope") != kind:
            self.wrong_scope(f"The token's scope is not {kind}.")
        try:
            values = read(self.claims, table)
        except ClaimError as error:
            self.refuse("bad-claims", f"The link's claims are not valid: {error}.")
        if audience is not None and audience not in values["aud"]:
            self.refuse("wrong-audience", f"The link's aud is not this service's public URL, {audience}.")
        if values["exp"] - values["iat"] > max_life_seconds:
            self.refuse("bad-claims", f"The link lives longer than {max_life_seconds:.0f} s, the most allowed.")
        if max(values["iat"], values.get("nbf", 0)) > now + LEEWAY_SECONDS:
            self.refuse("not-yet-valid", "The link is not valid yet; compare the clocks of its issuer and of here.")
        return values, now >= values["exp"] + LEEWAY_SECONDS

    def wrong_scope(self, detail: str) -> NoReturn:
        self.refuse("wrong-scope", detail, "wrong-scope")


@lru_cache(maxsize=256)
def _header_of(segment: str) -> Mapping[str, Any]:
    """The header that the first segment of a token is; all tokens of a key begin alike. Raises PyJWTError."""
    header: dict[str, Any] = _JWS.get_unverified_header(f"{segment}.e30.")
    return header


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def verify_upload(
    token: str, keys: KeySet, *, now: float, audience: str | None, max_life_seconds: float
) -> VerifiedUpload:
    """What the upload link allows; an expired one too, marked as such (T-05C).

    Args:
        now: seconds since the epoch.
        audience: what `aud` must be or contain; None where the public URL is not set.
        max_life_seconds: the longest `exp - iat`.

    Raises:
        LinkRefusal: bad-link or wrong-scope; permanent.
    """
    verifier = _Verifier(token, keys)
    values, expired = verifier.check("upload", UPLOAD, now=now, audience=audience, max_life_seconds=max_life_seconds)
    terms = LinkTerms(
        issuer=verifier.key.issuer,
        jti=values["jti"],
        uses=values.get("uses", 1),
        owner=values.get("sub"),
        max_size=values["max"],
        size=values.get("size"),
        types=values.get("types", ()),
        file_id=values.get("fid"),
        sha256=values.get("sha256"),
        hold_seconds=values.get("hold"),
        ttl_seconds=values.get("ttl"),
        ref=values.get("ref"),
        meta=values.get("meta"),
        expires_at=int(values["exp"]),
    )
    return VerifiedUpload(terms, verifier.key.kid, hash_jti(values["jti"]), expired, values["iat"])


def verify_download(
    token: str, keys: KeySet, *, now: float, audience: str | None, file_id: FileId, max_life_seconds: float
) -> VerifiedDownload:
    """What the download link allows for this very file; for the arguments see `verify_upload`.

    Raises:
        LinkRefusal: bad-link; wrong-scope, also for another file's link; link-expired, as 403 (lesson G5).
    """
    verifier = _Verifier(token, keys)
    values, expired = verifier.check(
        "download", DOWNLOAD, now=now, audience=audience, max_life_seconds=max_life_seconds
    )
    if values["fid"] != file_id:
        verifier.wrong_scope("The link is for another file.")
    if expired:
        verifier.refuse("expired", "The link has expired; ask for a new one and go on from there.", "link-expired", 403)
    return VerifiedDownload(
        file_id=FileId(values["fid"]),
        filename=values.get("filename"),
        disposition=values.get("disposition", "attachment"),
        owner=values.get("sub"),
        jti_hash=hash_jti(values.get("jti")),
        kid=verifier.key.kid,
        expires_at=int(values["exp"]),
        issuer=verifier.key.issuer,
        jti=values.get("jti"),
        issued_at=values["iat"],
    )


def verify_service(
    token: str, keys: KeySet, *, now: float, audience: str | None, scope: str, max_life_seconds: float
) -> VerifiedService:
    """Who the service token speaks for, and that it has the scope; see `verify_upload`.

    `scope` in the token is a list of texts, or one text with spaces (RFC 8693 4.2). Scopes that
    are not known here are kept: a newer service may know them.

    Raises:
        LinkRefusal: bad-link; wrong-scope; link-expired.
    """
    verifier = _Verifier(token, keys)
    values, expired = verifier.check("service", SERVICE, now=now, audience=audience, max_life_seconds=max_life_seconds)
    listed = verifier.claims.get("scope")
    scopes = listed.split(" ") if isinstance(listed, str) else listed
    if not isinstance(scopes, list) or not all(isinstance(item, str) for item in scopes):
        verifier.refuse("bad-claims", "The token's claims are not valid: scope must be a list of texts.")
    if scope not in scopes:
        verifier.wrong_scope(f"The token's scope does not include {scope}.")
    if expired:
        verifier.refuse("expired", "The token has expired; make a new one.", "link-expired")
    return VerifiedService(
        issuer=verifier.key.issuer,
        scopes=frozenset(scopes),
        subject=values.get("sub"),
        jti_hash=hash_jti(values.get("jti")),
        kid=verifier.key.kid,
        expires_at=int(values["exp"]),
        jti=values.get("jti"),
        issued_at=values["iat"],
    )


def hash_jti(jti: str | None) -> str:
    """What logs show of a jti: 16 hex digits; empty for none."""
    return hashlib.sha256(jti.encode()).hexdigest()[:16] if jti else ""


# Minting. The claims pass the same tables as on the way in.


def mint_upload(
    key: Key,
    *,
    audience: str,
    jti: str,
    now: float,
    expires_in: int,
    max_size: int,
    size: int | None = None,
    types: Sequence[str] = (),
    owner: str | None = None,
    uses: int = 1,
    file_id: FileId | None = None,
    sha256: str | None = None,
    hold: int | None = None,
    ttl: int | None = None,
    ref: str | None = None,
    meta: Mapping[str, Any] | None = None,
) -> str:
    """An upload token that `verify_upload` accepts for `expires_in` seconds from `now`.

    The same arguments give the same token, except with ES256, whose signatures are randomised.

    Raises:
        ClaimError: a claim is out of range, or the token would be over 4 KiB.
        KeySetError: the key cannot sign.
    """
    claims = {
        "jti": jti,
        "max": max_size,
        "size": size,
        "types": list(types) or None,
        "sub": owner,
        "uses": uses if uses != 1 else None,
        "fid": file_id,
        "sha256": sha256,
        "hold": hold,
        "ttl": ttl,
        "ref": ref,
        "meta": dict(meta) if meta is not None else None,
    }
    return _mint(key, "upload", UPLOAD, "upload", audience, now, expires_in, claims)


def mint_download(
    key: Key,
    *,
    audience: str,
    file_id: FileId,
    now: float,
    expires_in: int,
    jti: str | None = None,
    filename: str | None = None,
    disposition: Disposition | None = None,
    owner: str | None = None,
) -> str:
    """A download token for one file; see `mint_upload`."""
    claims = {"jti": jti, "fid": file_id, "sub": owner, "filename": filename, "disposition": disposition}
    return _mint(key, "download", DOWNLOAD, "download", audience, now, expires_in, claims)


def mint_service(
    key: Key,
    *,
    audience: str,
    scopes: Collection[str],
    now: float,
    expires_in: int,
    jti: str | None = None,
    subject: str | None = None,
) -> str:
    """A service token with these scopes; see `mint_upload`."""
    if not scopes or not set(scopes) <= set(SERVICE_SCOPES):
        raise ClaimError(f"scope must be some of {', '.join(SERVICE_SCOPES)}")
    listed = [scope for scope in SERVICE_SCOPES if scope in scopes]
    return _mint(key, "service", SERVICE, listed, audience, now, expires_in, {"jti": jti, "sub": subject})


def _mint(
    key: Key,
    kind: str,
    table: Table,
    scope: str | list[str],
    audience: str,
    now: float,
    expires_in: int,
    claims: Mapping[str, Any],
) -> str:
    if key.signer is None or not key.can_sign:
        raise KeySetError(f"key {key.kid} cannot sign: it is {key.state}, or has no private half")
    if expires_in <= 0:
        raise ClaimError("exp must be later than iat")
    issued = int(now)
    payload = {"iss": key.issuer, "aud": audience, "scope": scope, "iat": issued, "nbf": issued}
    payload["exp"] = issued + expires_in
    payload |= {name: value for name, value in claims.items() if value is not None}
    read(payload, table)
    headers = {"kid": key.kid, "typ": _TYPES[kind]}
    token = _JWS.encode(dump(payload), key.signer, algorithm=key.alg, headers=headers)
    if len(token) > MAX_TOKEN_BYTES:
        raise ClaimError(f"the claims make a token of {len(token)} bytes; at most {MAX_TOKEN_BYTES} are allowed")
    return token


def upload_url(base: str, token: str) -> str:
    """The upload link; `base` has no trailing slash."""
    return f"{base}/files?sig={token}"


def download_url(base: str, file_id: FileId, token: str, filename: str | None = None) -> str:
    """The download link, with the name for the address bar if it can stand there.

    `manifest` is another resource's name, and clients resolve `.` and `..` before they ask.
    """
    name = f"/{quote(filename, safe='')}" if filename and filename not in ("manifest", ".", "..") else ""
    return f"{base}/d/{file_id}{name}?sig={token}"
