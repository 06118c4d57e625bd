"""What a service has written down; faults to put in; tokens that no issuer would sign."""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import secrets
import sqlite3
import time
from typing import Any

from service.keyset import Key
from tests.web.harness import Site


def traces(site: Site) -> dict[str, Any]:
    """Every row of every table, and every file with its size: equal before and after means no effect.

    But for the duties, whose terms are renewed by the clock.
    """
    root = site.service.settings.data
    found: dict[str, Any] = {
        "files on disk": [
            (str(path.relative_to(root)), path.stat().st_size)
            for path in sorted(root.rglob("*"))
            if path.is_file() and not path.name.startswith("attachd.db")
        ]
    }
    with contextlib.closing(sqlite3.connect(f"file:{root / 'attachd.db'}?mode=ro", uri=True)) as database:
        for (table,) in database.execute(
            "select name from sqlite_master where type = 'table' and name <> 'duties'"
        ).fetchall():
            found[table] = sorted(map(repr, database.execute(f'select * from "{table}"').fetchall()))
    return found


def events(site: Site) -> list[tuple[str, dict[str, Any]]]:
    """The outbox: types and data, oldest first."""
    with contextlib.closing(sqlite3.connect(site.service.settings.data / "attachd.db")) as database:
        return [
            (kind, json.loads(data)) for kind, data in database.execute("select type, data from events order by seq")
        ]


def count(site: Site, table: str) -> int:
    """Rows of a table."""
    return len(traces(site)[table])


def instant(site: Site) -> int:
    """Now, on the service's clock."""
    return int(site.clock.now() if site.clock else time.time())


def breaks(error: Exception) -> Any:
    """A call that fails, in place of one that works."""

    async def broken(*_: Any, **__: Any) -> Any:
        raise error

    return broken


def forward(site: Site, seconds: float) -> None:
    """The service's clock is that much further."""
    assert site.clock is not None
    site.clock.forward(seconds)


def claims(site: Site, **changes: Any) -> dict[str, Any]:
    """The claims of a good upload token, changed; a claim set to None is left out."""
    now = instant(site)
    good = {
        "iss": site.key.issuer,
        "aud": site.service.settings.public_url or site.base,
        "scope": "upload",
        "iat": now,
        "exp": now + 3600,
        "jti": secrets.token_urlsafe(16),
        "max": 2**30,
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def forge(key: Key, payload: Any, *, secret: bytes | None = None, signature: bytes | None = None, **header: Any) -> str:
    """A token with any header and payload, signed by HMAC with the key's secret unless told otherwise."""
    fields = {"alg": "HS256", "kid": key.kid, "typ": "upl+jwt"} | header
    fields = {name: value for name, value in fields.items() if value is not None}
    text = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    signed = f"{_base64url(json.dumps(fields).encode())}.{_base64url(text)}"
    if signature is None:
        held = secret if secret is not None else key.signer
        assert isinstance(held, bytes)
        signature = hmac.digest(held, signed.encode(), "sha256")
    return f"{signed}.{_base64url(signature)}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
