"""Endpoints and hooks: what the settings file may say of them, and what a refusal must not show."""

from __future__ import annotations

import base64
from ipaddress import ip_network

import pytest
from click.testing import CliRunner

from service.commands.config import check_config
from service.endpoints import EVENT_TYPES, MOST_ENDPOINTS, Endpoint, Hook, HookSet, allowed
from service.events import EventMaker
from service.settings import SettingsError, describe, load
from tests.contract.metadata_values import make_file, make_upload

OLD = "whsec_" + base64.b64encode(b"o" * 24).decode()
NEW = "whsec_" + base64.b64encode(b"n" * 64).decode()

GOOD = f"""
[[endpoints]]
id = "chat"
url = "https://chat.example.com/attachd?key=canary-key"
secrets = ["{NEW}", "{OLD}"]
types = ["file.*", "upload.failed"]

[[endpoints]]
id = "audit"
url = "http://10.0.0.7:8000/"
secrets = ["{OLD}"]

[hooks.pre_create]
url = "https://chat.example.com/may"
secrets = ["{OLD}"]
budget = "2s"
on_failure = "open"

[hooks.pre_finish]
url = "https://chat.example.com/may"
secrets = ["{OLD}"]
"""
#: where `audit` is
ALLOWS = {"ATTACHD_WEBHOOK_NETWORKS": "10.0.0.0/8"}


def test_tables_are_read() -> None:
    """Each table becomes what it says; what is left out has its default."""
    settings = load(ALLOWS, GOOD)
    chat, audit = settings.endpoints
    assert chat == Endpoint(
        "https://chat.example.com/attachd?key=canary-key", (NEW, OLD), "chat", ("file.*", "upload.failed")
    )
    assert audit == Endpoint("http://10.0.0.7:8000/", (OLD,), "audit")
    assert settings.hooks.pre_create == Hook("https://chat.example.com/may", (OLD,), 2.0, "open")
    assert settings.hooks.pre_finish == Hook("https://chat.example.com/may", (OLD,), 3.0, "closed")


def test_there_are_none_unless_the_file_says_so() -> None:
    """Without tables nobody is told of anything and nobody is asked."""
    settings = load({"ATTACHD_ENDPOINTS": "", "ATTACHD_HOOKS": ""})
    assert (settings.endpoints, settings.hooks) == ((), HookSet())


@pytest.mark.parametrize("kind", EVENT_TYPES)
def test_types_choose_events(kind: str) -> None:
    """No list is every type; a pattern is all of a kind; a name is that one."""
    assert Endpoint("", ()).wants(kind)
    assert Endpoint("", (), types=(kind,)).wants(kind)
    assert Endpoint("", (), types=("file.*",)).wants(kind) is kind.startswith("file.")
    assert not Endpoint("", (), types=("file.other",)).wants(kind)


def test_the_types_are_those_that_there_are() -> None:
    """Every event that is made is of a type that an endpoint can ask for."""
    maker, upload = EventMaker(lambda: "evt_x"), make_upload()
    for kind in EVENT_TYPES:
        subject, _, what = kind.partition(".")
        file = make_file(upload)
        event = maker.of_upload(what, upload, 0) if subject == "upload" else maker.of_file(what, file, upload, 0)
        assert event.type == kind
        assert event.data["file_id"] == upload.file_id


def one(**changes: object) -> str:
    """A file with one endpoint, a field of which is another; None: left out."""
    table: dict[str, object] = {"id": "chat", "url": "https://chat.example/", "secrets": [OLD]} | changes
    return "[[endpoints]]\n" + "".join(f"{name} = {value!r}\n" for name, value in table.items() if value is not None)


def hook(**changes: object) -> str:
    return one(id=None, **changes).replace("[[endpoints]]", "[hooks.pre_create]")


SHORT = "whsec_" + base64.b64encode(b"canary-secret").decode()

BAD = [
    (one(id=None), "ENDPOINTS", "a table for endpoint 1"),
    (one(url=None), "ENDPOINTS", "a table for endpoint 1"),
    (one(secret="x"), "ENDPOINTS", "a table for endpoint 1"),
    (one(id="Chat_1"), "ENDPOINTS", "0-9 and hyphens"),
    (one(id="-"), "ENDPOINTS", "no hyphen in front"),
    (one(url="chat.example/events"), "ENDPOINTS", "https://"),
    (one(url="ftp://chat.example/"), "ENDPOINTS", "https://"),
    (one(url="https://user:canary-secret@chat.example/"), "ENDPOINTS", "no user"),
    (one(url="https://chat.example/#a"), "ENDPOINTS", "no fragment"),
    (one(url="https://chat.example:99999/"), "ENDPOINTS", "https://"),
    (one(url="http://127.1/"), "ENDPOINTS", "https://"),
    (one(url="http://2130706433/"), "ENDPOINTS", "https://"),
    (one(secrets=[]), "ENDPOINTS", "one secret or two"),
    (one(secrets=[OLD, NEW, OLD]), "ENDPOINTS", "one secret or two"),
    (one(secrets=["canary-secret-that-is-long-enough"]), "ENDPOINTS", "whsec_"),
    (one(secrets=[SHORT]), "ENDPOINTS", "24 to 64 bytes"),
    (one(secrets=OLD), "ENDPOINTS", "one secret or two"),
    (one(types=["file.made"]), "ENDPOINTS", "file.ready"),
    (one(types="file.*"), "ENDPOINTS", "a list of"),
    (one() + one(), "ENDPOINTS", "chat is there twice"),
    ("\n".join(one(id=f"e{number}") for number in range(MOST_ENDPOINTS + 1)), "ENDPOINTS", "at most 32"),
    ("endpoints = 'https://chat.example/'", "ENDPOINTS", "tables [[endpoints]]"),
    (hook(url="x"), "HOOKS", "the url of hook pre_create"),
    (hook(secrets=[SHORT]), "HOOKS", "the secrets of hook pre_create"),
    (hook(budget="4s"), "HOOKS", "from 1s to 3s"),
    (hook(on_failure="retry"), "HOOKS", "open or closed"),
    (hook(types=["file.*"]), "HOOKS", "a table for hook pre_create"),
    (hook().replace("pre_create", "post_create"), "HOOKS", "[hooks.pre_finish]"),
]


@pytest.mark.parametrize(("toml", "name", "right"), BAD)
def test_k4_a_table_that_cannot_work_stops_the_start(toml: str, name: str, right: str) -> None:
    """The one line names setting and field and says what would be right; nothing of a secret is in it."""
    with pytest.raises(SettingsError) as caught:
        load({}, toml, "a.toml")
    (line,) = caught.value.problems
    assert f"ATTACHD_{name} (in a.toml)" in line
    assert right in line
    for secret in ("canary", SHORT.removeprefix("whsec_"), OLD.removeprefix("whsec_")):
        assert secret not in line


@pytest.mark.parametrize(
    ("toml", "where"),
    [
        (one(url="http://10.1.2.3/events"), "10.1.2.3, where endpoint chat is"),
        (one(url="http://[fd00::7]:80/"), "fd00::7, where endpoint chat is"),
        (hook(url="http://127.0.0.1:8000/"), "127.0.0.1, where hook pre_create is"),
    ],
)
def test_k4_an_address_that_would_be_refused_stops_the_start(toml: str, where: str) -> None:
    """What could never be sent to is named at the start, with the setting that would allow it."""
    with pytest.raises(SettingsError) as caught:
        load({}, toml, "a.toml")
    (line,) = caught.value.problems
    assert line.startswith("ATTACHD_WEBHOOK_NETWORKS: not set")
    assert where in line
    load({"ATTACHD_WEBHOOK_NETWORKS": "10.0.0.0/8,fd00::/8,127.0.0.1"}, toml)


@pytest.mark.parametrize("name", ["ENDPOINTS", "HOOKS"])
def test_the_environment_names_nobody(name: str) -> None:
    """They come from the settings file only, and the refusal says so without the value's secret."""
    with pytest.raises(SettingsError, match="of the settings file") as caught:
        load({f"ATTACHD_{name}": f"https://chat.example {OLD}"})
    assert OLD not in str(caught.value)


def test_what_is_shown_has_no_secret() -> None:
    """`check-config`, and a settings object that is printed, show where things go and nothing that signs."""
    settings = load(ALLOWS, GOOD)
    shown = CliRunner().invoke(check_config, obj=settings).output
    assert "ATTACHD_ENDPOINTS=chat https://chat.example.com/attachd?*** secrets=2 file.* upload.failed; audit" in shown
    assert "ATTACHD_HOOKS=pre_create https://chat.example.com/may secrets=1 budget=2s on_failure=open; pre_f" in shown
    for text in (shown, repr(settings), str(describe(settings))):
        for secret in (OLD, NEW, "canary-key"):
            assert secret.removeprefix("whsec_") not in text


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "240.0.0.1", "198.18.0.1", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1",
        "2001:db8::1", "fec0::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::", "::127.0.0.1",
    ],
)  # fmt: skip
def test_V3_addresses_that_are_not_public(address: str) -> None:
    """V3: Nothing is sent there unless a network of the settings has it."""
    assert not allowed(address, ())
    assert not allowed(address, [ip_network("203.0.113.0/24")])


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_addresses_that_are_public(address: str) -> None:
    """Everybody may be sent to there."""
    assert allowed(address, ())


@pytest.mark.parametrize(
    ("address", "network"),
    [("10.1.2.3", "10.0.0.0/8"), ("::1", "::1"), ("fd00::7", "fd00::/8"), ("::ffff:10.1.2.3", "10.0.0.0/8")],
)
def test_a_network_of_the_settings_is_allowed(address: str, network: str) -> None:
    """What `webhook_networks` names is sent to although it is not public."""
    assert allowed(address, [ip_network(network)])
