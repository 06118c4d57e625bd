"""Links for backends that leave the signing to the service: the control API's half of contract section 4.

Each kind is made in two steps: a plan with all that is drawn or looked up, and the signing, which
makes the same links of the same plan (`once`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from service.claims import DOWNLOAD, UPLOAD, ClaimError
from service.clock import Clock, new_file_id, new_jti
from service.control_models import (
    DownloadLink,
    DownloadLinks,
    DownloadLinksWanted,
    DownloadLinkWanted,
    ItemProblem,
    UploadLink,
    UploadLinkWanted,
)
from service.found import Found
from service.keyset import Key, KeySet, KeySetError
from service.links import download_url, mint_download, mint_upload, upload_url
from service.model import FileId
from service.protocol.problems import KINDS, URN, Refusal, refuse
from service.revocations import Revocations

#: a link lives as long as a client of this speed needs, and an hour at least (lesson G5)
_SLOW_BYTES_PER_SECOND: Final = 200_000
_LEAST_SECONDS: Final = 3600
#: claims that have another name in requests
_FIELDS: Final = {"sub": "owner", "exp": "expires_in"}


@dataclass(frozen=True, slots=True)
class Limits:
    """What the service would refuse, and so does not sign. Bytes and seconds."""

    max_size: int
    upload_life_seconds: float
    download_life_seconds: float


class Minting:
    """Signs with the newest key of the issuer that asks.

    Args:
        keys: the set as last read; does no I/O.
    """

    def __init__(
        self, keys: Callable[[], KeySet], found: Found, revocations: Revocations, limits: Limits, clock: Clock
    ) -> None:
        self._keys = keys
        self._found = found
        self._revocations = revocations
        self._limits = limits
        self._clock = clock

    async def plan_upload(self, issuer: str, wanted: UploadLinkWanted) -> Mapping[str, Any]:
        """Raises Refusal: bad-request, cannot-sign."""
        if wanted.max > self._limits.max_size:
            raise refuse("bad-request", f"max: the service takes at most {self._limits.max_size} bytes")
        _check_life(wanted.expires_in, self._limits.upload_life_seconds, "expires_in")
        file_id = new_file_id() if wanted.uses == 1 else None
        at = await self._revocations.issue_at(issuer, wanted.owner, None)
        plan = {"jti": new_jti(), "file_id": file_id, "at": at}
        self.upload(issuer, wanted, plan, base="")
        return plan

    def upload(self, issuer: str, wanted: UploadLinkWanted, plan: Mapping[str, Any], *, base: str) -> UploadLink:
        """The link that the plan says, and the one to its file. `base`: what links begin with."""
        key, at, file_id = self._key(issuer), plan["at"], plan["file_id"]
        with _claims():
            token = mint_upload(
                key,
                audience=base,
                jti=plan["jti"],
                now=at,
                expires_in=wanted.expires_in,
                max_size=wanted.max,
                size=wanted.size,
                types=wanted.types or (),
                owner=wanted.owner,
                uses=wanted.uses,
                file_id=file_id,
                hold=wanted.hold,
                ttl=wanted.ttl,
                ref=wanted.ref,
                meta=wanted.meta,
            )
        download = None
        if file_id is not None:
            seconds = int(self._limits.download_life_seconds)
            token_for_file = mint_download(
                key, audience=base, file_id=file_id, now=at, expires_in=seconds, owner=wanted.owner
            )
            download = download_url(base, file_id, token_for_file)
        return UploadLink(
            url=upload_url(base, token),
            file_id=file_id,
            download_url=download,
            expires_at=int(at) + wanted.expires_in,
            jti=plan["jti"],
        )

    async def plan_downloads(self, issuer: str, wanted: DownloadLinksWanted) -> Mapping[str, Any]:
        """Which items get a link, and how long it lives. Raises Refusal: bad-request, cannot-sign."""
        self._key(issuer)
        for number, item in enumerate(wanted.items):
            if item.expires_in is not None:
                _check_life(item.expires_in, self._limits.download_life_seconds, f"items.{number}.expires_in")
        return {"items": await asyncio.gather(*(self._plan_download(issuer, item) for item in wanted.items))}

    async def _plan_download(self, issuer: str, item: DownloadLinkWanted) -> dict[str, Any]:
        file_id = FileId(item.file_id)
        try:
            size, owner = await self._found.promised(issuer, file_id)
        except Refusal as refusal:
            return {"error": [refusal.problem.slug, refusal.problem.detail]}
        enough = max(_LEAST_SECONDS, size // _SLOW_BYTES_PER_SECOND)
        seconds = item.expires_in or min(enough, int(self._limits.download_life_seconds))
        at = await self._revocations.issue_at(issuer, owner, file_id)
        return {"at": at, "seconds": seconds, "owner": owner, "jti": new_jti()}

    async def downloads(
        self, issuer: str, wanted: DownloadLinksWanted, plan: Mapping[str, Any], *, base: str
    ) -> DownloadLinks:
        """The links that the plan says. `base`: what links begin with."""
        key = self._key(issuer)

        def sign() -> list[DownloadLink]:
            with _claims():
                return [_signed(key, base, item, each) for item, each in zip(wanted.items, plan["items"], strict=True)]

        # hundreds of signatures take their time
        return DownloadLinks(items=await asyncio.to_thread(sign))

    def _key(self, issuer: str) -> Key:
        try:
            return self._keys().signing_key(issuer)
        except KeySetError:
            raise refuse(
                "cannot-sign", "The service holds no private key of this issuer; sign the link there."
            ) from None


def _signed(key: Key, base: str, item: DownloadLinkWanted, plan: Mapping[str, Any]) -> DownloadLink:
    if "error" in plan:
        slug, detail = plan["error"]
        kind = KINDS[slug]
        problem = ItemProblem(type=URN + slug, title=kind.title, status=kind.status, detail=detail)
        return DownloadLink(file_id=item.file_id, error=problem)
    file_id = FileId(item.file_id)
    token = mint_download(
        key,
        audience=base,
        file_id=file_id,
        now=plan["at"],
        expires_in=plan["seconds"],
        jti=plan["jti"],
        filename=item.filename,
        disposition=item.disposition,
        owner=plan["owner"],
    )
    url = download_url(base, file_id, token, item.filename)
    return DownloadLink(file_id=file_id, url=url, expires_at=int(plan["at"]) + plan["seconds"])


def _check_life(seconds: int, most: float, field: str) -> None:
    if seconds > most:
        raise refuse("bad-request", f"{field}: a link lives for at most {most:.0f} s")


@contextmanager
def _claims() -> Iterator[None]:
    """What the claims will not have is said with the request's own word for it."""
    try:
        yield
    except ClaimError as error:
        claim, _, must = str(error).partition(" ")
        named = claim in UPLOAD or claim in DOWNLOAD
        raise refuse("bad-request", f"{_FIELDS.get(claim, claim)}: {must}" if named else str(error)) from None
