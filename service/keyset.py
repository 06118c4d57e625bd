"""The keys that sign and verify links: a JWK Set (RFC 7517 5) with two private members per key.

Each key pins its algorithm (`alg`), its issuer (`iss`) and a `state`: `active` signs and verifies,
`verify` only verifies, `revoked` does neither and stays in the file so that its `kid` is never
reused. A key without its private half verifies only. No error text and no `repr` here shows
secret material.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypeAlias

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from jwt.algorithms import HMACAlgorithm
from jwt.exceptions import InvalidKeyError

PublicKey: TypeAlias = Ed25519PublicKey | ec.EllipticCurvePublicKey | bytes
PrivateKey: TypeAlias = Ed25519PrivateKey | ec.EllipticCurvePrivateKey | bytes

#: alg -> kty, crv (RFC 7518, RFC 8037)
ALGORITHMS: Final = {"EdDSA": ("OKP", "Ed25519"), "ES256": ("EC", "P-256"), "HS256": ("oct", None)}
#: RFC 7518 3.2: an HS256 secret has the size of the hash output at least
MIN_SECRET_BYTES: Final = 32

_KID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ISSUER: Final = re.compile(r"[!-~]{1,128}")
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+")


class KeySetError(ValueError):
    """The key set cannot be used; says which key, what is wrong and what would be right."""


class KeyState(StrEnum):
    """What a key may still do."""

    ACTIVE = "active"
    VERIFY = "verify"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Key:
    """One key. `signer` is None where the set holds the public half only."""

    kid: str
    alg: str
    issuer: str
    state: KeyState
    #: seconds since the epoch, for people
    created: int | None
    jwk: Mapping[str, Any] = field(repr=False, compare=False)
    verifier: PublicKey = field(repr=False, compare=False)
    signer: PrivateKey | None = field(repr=False, compare=False)

    @classmethod
    def parse(cls, jwk: object, *, where: str = "the key") -> Key:
        """The key a JWK describes; `where` names it in errors until its kid is known.

        Raises:
            KeySetError: a member is missing or wrong.
        """
        if not isinstance(jwk, dict):
            raise KeySetError(f"{where}: must be a JSON object (a JWK)")
        kid = jwk.get("kid")
        if not isinstance(kid, str) or not _KID.fullmatch(kid):
            raise KeySetError(f"{where}: kid must be 1 to 64 of A-Z a-z 0-9 . _ -")
        where = f"key {kid}"
        alg = jwk.get("alg")
        if not isinstance(alg, str) or alg not in ALGORITHMS:
            raise KeySetError(f"{where}: alg must be one of {', '.join(ALGORITHMS)}")
        kty, crv = ALGORITHMS[alg]
        if jwk.get("kty") != kty:
            raise KeySetError(f"{where}: alg {alg} needs kty {kty}")
        if crv is not None and jwk.get("crv") != crv:
            raise KeySetError(f"{where}: alg {alg} needs crv {crv}")
        if jwk.get("use", "sig") != "sig":
            raise KeySetError(f"{where}: use must be sig, or absent")
        issuer = jwk.get("iss")
        if not isinstance(issuer, str) or not _ISSUER.fullmatch(issuer):
            raise KeySetError(f"{where}: iss must name the issuer in 1 to 128 printable ASCII characters, no spaces")
        state = jwk.get("state")
        if state not in tuple(KeyState):
            raise KeySetError(f"{where}: state must be one of {', '.join(KeyState)}")
        created = jwk.get("created")
        if created is not None and (type(created) is not int or not 0 <= created < 1 << 53):
            raise KeySetError(f"{where}: created must be whole seconds since 1970, or absent")
        verifier, signer = _material(jwk, alg, where)
        return cls(kid, alg, issuer, KeyState(state), created, dict(jwk), verifier, signer)

    @property
    def can_sign(self) -> bool:
        return self.state is KeyState.ACTIVE and self.signer is not None


@dataclass(frozen=True, slots=True)
class KeySet:
    """Keys by kid, in the order of the file; the newest is last."""

    keys: tuple[Key, ...] = ()

    @classmethod
    def parse(cls, text: str | bytes) -> KeySet:
        """The set a JWK Set file holds.

        Raises:
            KeySetError: not a JWK Set, a key is wrong, or two keys share a kid.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            raise KeySetError('the key set is not JSON; it must be a JWK Set: {"keys": [...]}') from None
        listed = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(listed, list):
            raise KeySetError('the key set must be a JWK Set: {"keys": [...]}')
        keys = cls()
        for position, jwk in enumerate(listed, start=1):
            keys = keys.with_key(Key.parse(jwk, where=f"key number {position}"))
        return keys

    def dump(self) -> str:
        """The text of the file, secrets included; `parse` reads it back to an equal set."""
        return json.dumps({"keys": [dict(key.jwk) for key in self.keys]}, indent=2) + "\n"

    def get(self, kid: str) -> Key | None:
        return next((key for key in self.keys if key.kid == kid), None)

    def with_key(self, key: Key) -> KeySet:
        """The set with one more key, from then on the one that signs for its issuer if it can.

        Raises:
            KeySetError: the kid is in the set already.
        """
        if self.get(key.kid) is not None:
            raise KeySetError(f"key {key.kid}: there is another key of this kid; give each key its own")
        return KeySet((*self.keys, key))

    def retire(self, kid: str, *, revoke: bool = False) -> KeySet:
        """The set in which the key signs no more; with `revoke` its links are refused at once.

        Retiring twice changes nothing, and a revoked key stays revoked: no command brings a key back.

        Raises:
            KeySetError: no such key.
        """
        key = self.get(kid)
        if key is None:
            known = ", ".join(k.kid for k in self.keys) or "none"
            raise KeySetError(f"no key {kid} in the set; there are: {known}")
        state = KeyState.REVOKED if revoke or key.state is KeyState.REVOKED else KeyState.VERIFY
        changed = Key.parse({**key.jwk, "state": str(state)})
        return KeySet(tuple(changed if k.kid == kid else k for k in self.keys))

    def signing_key(self, issuer: str | None = None) -> Key:
        """The newest key that can sign, of the issuer if one is given.

        Raises:
            KeySetError: there is none.
        """
        for key in reversed(self.keys):
            if key.can_sign and issuer in (None, key.issuer):
                return key
        whose = f" of issuer {issuer}" if issuer is not None else ""
        raise KeySetError(f"no active private key{whose} in the key set; `attachd keys new` makes one")


def _material(jwk: Mapping[str, Any], alg: str, where: str) -> tuple[PublicKey, PrivateKey | None]:
    if alg == "HS256":
        secret = _octets(jwk, "k", where)
        if len(secret) < MIN_SECRET_BYTES:
            raise KeySetError(
                f"{where}: the secret has {len(secret)} bytes; HS256 needs {MIN_SECRET_BYTES} or more random ones"
            )
        try:
            # PyJWT takes no secret that looks like a public key, so that no public key can be one.
            HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
        except InvalidKeyError:
            raise KeySetError(f"{where}: k looks like a key file; HS256 needs random bytes") from None
        return secret, secret
    d = _octets(jwk, "d", where, 32) if "d" in jwk else None
    x = _octets(jwk, "x", where, 32)
    if alg == "EdDSA":
        signer = Ed25519PrivateKey.from_private_bytes(d) if d is not None else None
        # Both halves are in the file, and a signer that disagrees with the verifier would
        # mint links that this very service refuses.
        if signer is not None and not hmac.compare_digest(signer.public_key().public_bytes_raw(), x):
            raise KeySetError(f"{where}: x is not the public half of d")
        return Ed25519PublicKey.from_public_bytes(x), signer
    y = _octets(jwk, "y", where, 32)
    try:
        public = ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), ec.SECP256R1()).public_key()
    except ValueError:
        raise KeySetError(f"{where}: x and y are not a point of P-256") from None
    if d is None:
        return public, None
    try:
        private = ec.derive_private_key(int.from_bytes(d), ec.SECP256R1())
    except ValueError:
        raise KeySetError(f"{where}: d is not a private key of P-256") from None
    if private.public_key() != public:
        raise KeySetError(f"{where}: x and y are not the public half of d")
    return public, private


def _octets(jwk: Mapping[str, Any], member: str, where: str, length: int | None = None) -> bytes:
    """The bytes of a base64url member (RFC 7515 2: no padding)."""
    text = jwk.get(member)
    if not isinstance(text, str) or not _BASE64URL.fullmatch(text) or len(text) % 4 == 1:
        raise KeySetError(f"{where}: {member} must be base64url text without padding")
    octets = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if length is not None and len(octets) != length:
        raise KeySetError(f"{where}: {member} has {len(octets)} bytes; it must have {length}")
    return octets
