"""`attachd doctor` on this machine: old keys, a clock that is wrong, limits that are low, receivers of events."""

from __future__ import annotations

import json
import resource
import sqlite3
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from service.commands import limits
from service.keyfile import new_key
from service.settings import Settings
from tests.e2e.listening import backend
from tests.e2e.process import ServiceProcess
from tests.e2e.test_doctor import local, run
from tests.ports import free_port


def key_set(path: Path, *keys: tuple[str, str, float]) -> None:
    """A key set file: kid, state and age in days of each key."""
    made = []
    for kid, state, days in keys:
        key = new_key("HS256", issuer="attachd", now=time.time() - days * 86400)
        made.append({**key.jwk, "kid": kid, "state": state})
    path.write_text(json.dumps({"keys": made}))
    path.chmod(0o600)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ([("new", "active", 1)], []),
        ([("old", "active", 400)], ["old has signed for 400 d", "attachd keys retire old`"]),
        ([("old", "active", 400), ("new", "active", 1)], []),
        ([("old", "verify", 400), ("new", "active", 30)], []),
        ([("old", "verify", 400), ("new", "active", 120)], ["followed 120 d ago", "attachd keys retire old --revoke`"]),
    ],
)
def test_keys_that_are_old_are_a_warning(tmp_path: Path, keys: list[tuple[str, str, float]], words: list[str]) -> None:
    """A key that has signed for over a year, and a retired one of which no token can be left, are told."""
    path = tmp_path / "keys.json"
    key_set(path, *keys)
    code, said = run(local(tmp_path, ATTACHD_KEYS=str(path)))
    assert code == 0
    assert said["keys"].startswith("warning " if words else "ok ")
    assert [word for word in words if word not in said["keys"]] == []


def test_a_clock_behind_the_newest_record_is_told(tmp_path: Path) -> None:
    """A restored database has a new date outside: what is recorded inside is what the clock is held against."""
    with ServiceProcess(tmp_path) as service:
        request = urllib.request.Request(service.mint_upload(), method="PUT", data=b"hello")
        urllib.request.urlopen(request, timeout=30).close()
        assert service.terminate() == 0
    with closing(sqlite3.connect(tmp_path / "data" / "attachd.db")) as database:
        database.execute("UPDATE uploads SET updated_at = updated_at + 3600")
        database.commit()
    code, said = run(local(tmp_path))
    assert code == 1
    assert "before the newest record" in said["machine clock"]


@pytest.mark.parametrize(
    ("settings", "check", "words"),
    [
        ({"ATTACHD_MAX_TRANSFERS": "1000000"}, "descriptors", "ATTACHD_MAX_TRANSFERS"),
        ({"ATTACHD_BUFFER_LIMIT": "1TiB"}, "memory", "ATTACHD_BUFFER_LIMIT"),
        ({"ATTACHD_MAX_SIZE": "1000TiB"}, "data directory", "ATTACHD_MAX_SIZE"),
    ],
)
def test_a_limit_of_the_machine_is_a_warning(tmp_path: Path, settings: dict[str, str], check: str, words: str) -> None:
    """What the settings may need and the machine does not have is told with the setting, and fails nothing."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if check == "descriptors" and hard >= 2_000_000:
        pytest.skip("this machine allows more")
    code, said = run(local(tmp_path, **settings))
    assert code == 0
    assert [name for name in said if said[name].startswith("warning ")] == [check]
    assert words in said[check]


@pytest.mark.parametrize(("where", "word"), [("/nowhere", "cannot be written"), ("/dev/shm", "free in")])
def test_room_for_counting_is_looked_at(where: str, word: str) -> None:
    """Without shared memory the workers count on disk, which is a warning; with it there is none."""
    check = limits.shared_memory(Settings(workers=2), Path(where))
    assert check.ok is True
    assert word in check.found
    assert bool(check.advice) == (where == "/nowhere")


def test_receivers_of_events_are_looked_for(tmp_path: Path) -> None:
    """One that listens is ok and gets nothing; one that does not, and a name that nobody knows, fail."""
    with backend() as there:
        path = tmp_path / "attachd.toml"
        tables = [("chat", there.url), ("gone", f"http://127.0.0.1:{free_port()}/"), ("lost", "http://there.invalid/")]
        text = "".join(f'[[endpoints]]\nid="{name}"\nurl="{url}"\nsecrets=["{there.secret}"]\n' for name, url in tables)
        path.write_text(f'webhook_networks = "127.0.0.0/8"\n{text}')
        code, said = run(local(tmp_path, ATTACHD_CONFIG=str(path)))
        assert code == 1
        assert said["endpoint chat"].startswith("ok ")
        assert said["endpoint gone"].startswith("FAILED")
        assert "the name there.invalid is not known" in said["endpoint lost"]
        assert there.got == []


def test_a_receiver_that_is_switched_off_is_told(tmp_path: Path) -> None:
    """An endpoint that answered 410 gets nothing until somebody enables it again, and the line says how."""
    with backend() as there:
        config = there.settings_file(tmp_path)
        with ServiceProcess(tmp_path, ATTACHD_CONFIG=config) as service:
            assert service.terminate() == 0
        with closing(sqlite3.connect(tmp_path / "data" / "attachd.db")) as database:
            database.execute("UPDATE endpoints SET disabled_at = 1790000000.0")
            database.commit()
        code, said = run(local(tmp_path, ATTACHD_CONFIG=config))
        assert code == 1
        assert "attachd events enable chat" in said["endpoint chat"]
