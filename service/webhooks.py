"""The Sender over HTTP: Standard Webhooks through aiohttp's client.

Three headers go with each body: `webhook-id`, `webhook-timestamp` (of this try) and
`webhook-signature`, one `v1` signature for each secret, so that a secret can be replaced while both
sides know the old one and the new one. Redirects are not followed, and no proxy of the environment
is used.

An address that is not public is refused unless the settings name its network (lesson V3): names are
resolved here, and the connection goes to one of the addresses that were looked at, so a name that
means another address a moment later (DNS rebinding) gains nothing. Names are looked up on threads of
their own: a name server that hangs holds up nobody else's blocking calls.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Final

from aiohttp import (
    ClientConnectorDNSError,
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
)
from aiohttp.abc import AbstractResolver, ResolveResult
from standardwebhooks import Webhook

from service.clock import Clock
from service.endpoints import Network, Target, allowed
from service.outward import Answer, Unsent

#: of an answer's body, which may say why an upload is refused
_MOST_BODY: Final = 4096
#: most servers keep an idle connection for two seconds or more; a POST on one that was just closed is lost
_KEEP_SECONDS: Final = 1.0
_LOOKUPS: Final = 2


class Webhooks:
    """For one endpoint, or the hooks; connections are made as they are needed.

    Args:
        agent: names this service in the User-Agent.
        networks: those that may be sent to although they are not public.
        connections: the most at once.
    """

    def __init__(self, clock: Clock, *, agent: str, networks: Sequence[Network], connections: int) -> None:
        self._clock = clock
        self._agent = agent
        self._allowed = partial(allowed, networks=tuple(networks))
        self._connections = connections
        self._resolver: _Resolver | None = None
        self._session: ClientSession | None = None

    async def close(self) -> None:
        """No connection is left."""
        if self._session is not None and self._resolver is not None:
            await self._session.close()
            await self._resolver.close()

    async def post(self, target: Target, message_id: str, payload: str, *, seconds: float) -> Answer:
        """See Sender."""
        answer: Answer | None = None
        try:
            if target.address is not None and not self._allowed(target.address):
                # aiohttp asks no resolver about an address
                raise _Forbidden("the address is not public, nor in webhook_networks")
            async with (
                asyncio.timeout(seconds),
                self._open().post(
                    target.url,
                    data=payload.encode(),
                    headers=self._headers(target, message_id, payload),
                    allow_redirects=False,
                ) as response,
            ):
                answer = Answer(response.status)
                if response.status // 100 == 4:
                    answer = Answer(response.status, await _beginning(response))
        except _Forbidden as error:
            raise Unsent("forbidden", str(error)) from None
        except TimeoutError:
            if answer is None:
                raise Unsent("timeout", f"no answer in {seconds:g} s") from None
        except ClientConnectorDNSError as error:
            if isinstance(error.os_error, _Forbidden):
                raise Unsent("forbidden", str(error.os_error)) from None
            raise Unsent("unreachable", "the name is not known") from error
        except (ClientError, OSError) as error:
            if answer is None:
                raise Unsent("unreachable", type(error).__name__) from error
        assert answer is not None
        return answer

    def _open(self) -> ClientSession:
        if self._session is None:
            self._resolver = _Resolver(self._allowed)
            connector = TCPConnector(resolver=self._resolver, limit=self._connections, keepalive_timeout=_KEEP_SECONDS)
            self._session = ClientSession(
                connector=connector,
                cookie_jar=DummyCookieJar(),
                timeout=ClientTimeout(total=None),
                # what little is read of an answer is read as it comes
                headers={"User-Agent": self._agent, "Accept-Encoding": "identity"},
                auto_decompress=False,
            )
        return self._session

    def _headers(self, target: Target, message_id: str, payload: str) -> dict[str, str]:
        now = int(self._clock.now())
        at = datetime.fromtimestamp(now, UTC)
        signatures = [_signer(secret).sign(message_id, at, payload) for secret in target.secrets]
        return {
            "Content-Type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(now),
            "webhook-signature": " ".join(signatures),
        }


class _Forbidden(OSError):
    """As aiohttp wants it of a resolver."""


class _Resolver(AbstractResolver):
    """Names to addresses that may be connected to."""

    def __init__(self, permits: Callable[[str], bool]) -> None:
        self._permits = permits
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="webhook-names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Those of the name's addresses that are permitted. Raises OSError."""
        look = partial(socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, look)
        results = [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=int(address[1]),
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in found
            if self._permits(str(address[0]))
        ]
        if not results:
            raise _Forbidden("the name has no public address, nor one in webhook_networks")
        return results

    async def close(self) -> None:
        """Look-ups that run end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@lru_cache(maxsize=256)
def _signer(secret: str) -> Webhook:
    return Webhook(secret)


async def _beginning(response: ClientResponse) -> bytes:
    body = b""
    while len(body) < _MOST_BODY and (piece := await response.content.read(_MOST_BODY - len(body))):
        body += piece
    return body
