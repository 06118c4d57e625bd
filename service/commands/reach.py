"""Whether receivers of events and hooks can be reached: their names, networks and ports. Nothing is sent to them."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import ssl
import time
from collections.abc import Iterator, Sequence
from typing import Final
from urllib.parse import urlsplit

from service.endpoints import Network, Target, allowed
from service.settings import Settings
from service.storage.s3.trials import Check

_CONNECT_SECONDS: Final = 5.0
_ENABLE: Final = "see to the receiver, then `attachd events enable {}`"


def receivers(settings: Settings, database: sqlite3.Connection | None) -> Iterator[Check]:
    """A Check for each, in the order of the settings; blocks.

    Args:
        database: where it is told which are switched off; None: there is none yet.
    """
    for endpoint in settings.endpoints:
        name = f"endpoint {endpoint.id}"
        since = None if database is None else _disabled_at(database, endpoint.id)
        if since is not None:
            shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(since))
            yield Check(name, False, f"it answered 410 and gets nothing since {shown}", _ENABLE.format(endpoint.id))
        else:
            yield _reached(name, endpoint, settings.webhook_networks)
    for name, hook in (("hook pre_create", settings.hooks.pre_create), ("hook pre_finish", settings.hooks.pre_finish)):
        if hook is not None:
            yield _reached(name, hook, settings.webhook_networks)


def _disabled_at(database: sqlite3.Connection, endpoint_id: str) -> float | None:
    try:
        row = database.execute("SELECT disabled_at FROM endpoints WHERE id = ?", (endpoint_id,)).fetchone()
    except sqlite3.Error:
        # the check of the database tells it
        return None
    return None if row is None else row[0]


def _reached(name: str, target: Target, networks: Sequence[Network]) -> Check:
    parts = urlsplit(target.url)
    host, port = str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError:
        return Check(name, False, f"the name {host} is not known", "correct its url, or the name server")
    usable = sorted(address for address in found if allowed(address, networks))
    if not usable:
        said = f"{host} is {', '.join(sorted(found))}, which is not public"
        return Check(name, False, said, "name its network in ATTACHD_WEBHOOK_NETWORKS")
    try:
        with contextlib.closing(socket.create_connection((usable[0], port), _CONNECT_SECONDS)) as plain:
            if parts.scheme == "https":
                ssl.create_default_context().wrap_socket(plain, server_hostname=host).close()
    except OSError as error:
        said = " ".join(str(getattr(error, "verify_message", "") or error.strerror or error).split())
        return Check(name, False, f"{host} port {port}: {said}", "start it, open the way to it, or correct its url")
    return Check(name, True, f"{host} port {port} answers")
