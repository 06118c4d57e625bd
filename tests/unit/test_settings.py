"""Settings: what is read, what is refused, and what a message says."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from service.commands.config import check_config
from service.settings import Settings, SettingsError, TcpAddress, UnixAddress, describe, load
from service.units import parse_duration


def test_the_defaults_are_those_of_the_contract():
    """With nothing set the main settings have the values that operators are promised."""
    settings = load({})
    assert (settings.listen, settings.ops_listen) == (TcpAddress("127.0.0.1", 8080), TcpAddress("127.0.0.1", 9080))
    assert (settings.max_size, settings.block_size) == (4_294_967_296, 8_388_608)
    assert (settings.upload_idle, settings.upload_life, settings.tombstone) == (86_400, 604_800, 604_800)
    assert (settings.body_idle, settings.body_min_rate, settings.grace) == (60, 1024, 30)
    assert (settings.buffer_limit, settings.max_transfers) == (256 * 2**20, 1000)
    assert (settings.durability, settings.strong_hash, settings.download_mode) == ("complete", "none", "proxy")
    assert settings.cors_origins == ("*",)
    assert settings.keys_path == Path("var/keys.json")
    assert settings.database_url == "sqlite:///var/attachd.db"


def test_the_environment_wins_over_the_file():
    """A setting in both has the environment's value; one in the file alone has the file's."""
    settings = load({"ATTACHD_MAX_SIZE": "2GiB"}, 'max_size = "1GiB"\ngrace = 5')
    assert (settings.max_size, settings.grace) == (2**31, 5)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("listen", "unix:/run/attachd.sock", UnixAddress(Path("/run/attachd.sock"))),
        ("listen", "[::1]:8080", TcpAddress("::1", 8080)),
        ("listen", "localhost:0", TcpAddress("localhost", 0)),
        ("public_url", "https://files.example.com/up/", "https://files.example.com/up"),
        ("trusted_proxies", "10.0.0.0/8, 192.0.2.1", (ip_network("10.0.0.0/8"), ip_network("192.0.2.1/32"))),
        ("trusted_proxies", "", ()),
        ("cors_origins", "https://a.example, http://localhost:3000", ("https://a.example", "http://localhost:3000")),
        ("cors_origins", "", ()),
        ("body_min_rate", "2KiB/s", 2048),
        ("upload_idle", " 90m ", 5400),
        ("database", "sqlite:////srv/state.db", "sqlite:////srv/state.db"),
    ],
)
def test_good_values_are_read(name, text, value):
    """The text of the environment becomes the value meant."""
    assert getattr(load({f"ATTACHD_{name.upper()}": text}), name) == value


#: lesson K4: thirty settings that cannot work: environment, file, setting named, words that say what would be right
BAD = [
    ({"ATTACHD_LISTEN": ":8080"}, None, "ATTACHD_LISTEN", "0.0.0.0:8080"),
    ({"ATTACHD_LISTEN": "8080"}, None, "ATTACHD_LISTEN", "HOST:PORT"),
    ({"ATTACHD_LISTEN": "::1:8080"}, None, "ATTACHD_LISTEN", "[IPV6]:PORT"),
    ({"ATTACHD_LISTEN": "127.0.0.1:65536"}, None, "ATTACHD_LISTEN", "HOST:PORT"),
    ({"ATTACHD_LISTEN": "unix:relative.sock"}, None, "ATTACHD_LISTEN", "unix:/PATH"),
    ({"ATTACHD_OPS_LISTEN": "127.0.0.1:8080"}, None, "ATTACHD_OPS_LISTEN", "than listen"),
    ({"ATTACHD_LISTEN": "0.0.0.0:9080"}, None, "ATTACHD_OPS_LISTEN", "than listen"),
    ({"ATTACHD_PUBLIC_URL": "files.example.com"}, None, "ATTACHD_PUBLIC_URL", "https://"),
    ({"ATTACHD_PUBLIC_URL": "ftp://files.example.com"}, None, "ATTACHD_PUBLIC_URL", "https://"),
    ({"ATTACHD_PUBLIC_URL": "https://files.example.com/?a=b"}, None, "ATTACHD_PUBLIC_URL", "no query"),
    ({"ATTACHD_TRUSTED_PROXIES": "10.0.0.1/8"}, None, "ATTACHD_TRUSTED_PROXIES", "beyond the prefix"),
    ({"ATTACHD_TRUSTED_PROXIES": "nginx"}, None, "ATTACHD_TRUSTED_PROXIES", "networks"),
    ({"ATTACHD_DATA": ""}, None, "ATTACHD_DATA", "a path"),
    ({"ATTACHD_STORAGE": "s4"}, None, "ATTACHD_STORAGE", "filesystem"),
    ({"ATTACHD_DATABASE": "mysql://db/attachd"}, None, "ATTACHD_DATABASE", "sqlite:///PATH"),
    ({"ATTACHD_DATABASE": "sqlite:///:memory:"}, None, "ATTACHD_DATABASE", "a file"),
    ({"ATTACHD_MAX_SIZE": "4G"}, None, "ATTACHD_MAX_SIZE", "64MiB"),
    ({"ATTACHD_MAX_SIZE": "0"}, None, "ATTACHD_MAX_SIZE", "from 1 "),
    ({"ATTACHD_BLOCK_SIZE": "4KiB"}, None, "ATTACHD_BLOCK_SIZE", "from 64KiB to 1GiB"),
    ({"ATTACHD_STRONG_HASH": "md5"}, None, "ATTACHD_STRONG_HASH", "'sha256'"),
    ({"ATTACHD_DURABILITY": "yes"}, None, "ATTACHD_DURABILITY", "'always'"),
    ({"ATTACHD_UPLOAD_IDLE": "8d"}, None, "ATTACHD_UPLOAD_IDLE", "upload_life"),
    ({"ATTACHD_UPLOAD_LIFE": "1 week"}, None, "ATTACHD_UPLOAD_LIFE", "24h or 7d"),
    ({"ATTACHD_BODY_MIN_RATE": "-1"}, None, "ATTACHD_BODY_MIN_RATE", "1KiB/s"),
    ({"ATTACHD_BUFFER_LIMIT": "1MiB"}, None, "ATTACHD_BUFFER_LIMIT", "from 2MiB"),
    ({"ATTACHD_MAX_TRANSFERS": "1.5"}, None, "ATTACHD_MAX_TRANSFERS", "whole number"),
    ({"ATTACHD_CORS_ORIGINS": "https://chat.example.com/"}, None, "ATTACHD_CORS_ORIGINS", "no path"),
    ({"ATTACHD_CORS_ORIGINS": "https://*.example.com"}, None, "ATTACHD_CORS_ORIGINS", "no pattern"),
    ({"ATTACHD_CORS_ORIGINS": "*,https://a.example"}, None, "ATTACHD_CORS_ORIGINS", "* alone"),
    ({"ATTACHD_ACCEL_PREFIX": "attachd"}, None, "ATTACHD_ACCEL_PREFIX", "/_attachd/"),
    ({"ATTACHD_LOG_LEVEL": "loud"}, None, "ATTACHD_LOG_LEVEL", "'warning'"),
    ({"ATTACHD_MAXSIZE": "1GiB"}, None, "ATTACHD_MAXSIZE", "ATTACHD_MAX_SIZE"),
    ({"attachd_x": "", "ATTACHD_max_size": "1GiB"}, None, "ATTACHD_max_size", "ATTACHD_MAX_SIZE"),
    ({"ATTACHD_PORT": "8080"}, None, "ATTACHD_PORT", "no such setting"),
    ({}, "upload_idel = '1h'", "upload_idel", "upload_idle"),
    ({}, "max_size = true", "ATTACHD_MAX_SIZE (in a.toml)", "64MiB"),
    ({}, "grace = 1.5", "ATTACHD_GRACE (in a.toml)", "90s"),
    ({}, "max_size = ", "a.toml", "not valid TOML"),
]


@pytest.mark.parametrize(("env", "toml", "named", "right"), BAD)
def test_k4_a_setting_that_cannot_work_stops_the_start(env, toml, named, right):
    """The one line of the refusal names the setting and says what would be right."""
    with pytest.raises(SettingsError) as caught:
        load(env, toml, "a.toml")
    (line,) = caught.value.problems
    assert named in line
    assert right in line


def test_every_wrong_setting_is_named_at_once():
    """Three wrong settings give three lines, so that nobody starts the service four times."""
    with pytest.raises(SettingsError) as caught:
        load({"ATTACHD_GRACE": "soon", "ATTACHD_LOG_FORMAT": "xml", "ATTACHD_GRASE": "1s"})
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("name", ["DATABASE", "PUBLIC_URL"])
def test_a_password_is_not_in_the_refusal(name):
    """A refused URL is quoted without the password in it."""
    with pytest.raises(SettingsError) as caught:
        load({f"ATTACHD_{name}": "postgresql://attachd:canary-secret@db/attachd"})
    assert "canary-secret" not in str(caught.value)
    assert "postgresql://attachd:***@db/attachd" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ATTACHD_CONFIG", "/etc/attachd.toml"),
        ("ATTACHD_TEST_REQUIRE", "node"),
        ("ATTACHD_SERVICE_HOST", "10.1.2.3"),
        ("ATTACHD_PORT", "tcp://10.1.2.3:80"),
        ("ATTACHD_OPS_PORT_9080_TCP_ADDR", "10.1.2.3"),
        ("ATTACHD_SERVICE_PORT_HTTP", "80"),
        ("PATH", "/bin"),
    ],
)
def test_what_others_put_into_the_environment_is_no_setting(name, value):
    """The file's name, the tests' switch, and Kubernetes' variables about a Service change nothing."""
    assert load({name: value}) == load({})


@pytest.mark.parametrize(
    ("env", "url"),
    [
        ({}, "http://127.0.0.1:8080"),
        ({"ATTACHD_LISTEN": "0.0.0.0:80"}, "http://127.0.0.1:80"),
        ({"ATTACHD_LISTEN": "[::]:80"}, "http://[::1]:80"),
        ({"ATTACHD_LISTEN": "[2001:db8::1]:80"}, "http://[2001:db8::1]:80"),
        ({"ATTACHD_LISTEN": "0.0.0.0:80", "ATTACHD_PUBLIC_URL": "https://x.example/"}, "https://x.example"),
    ],
)
def test_links_begin_with_an_address_that_can_be_reached(env, url):
    """The base URL is the public one, else that of the listen address, never a wildcard."""
    assert load(env).base_url == url


def test_what_is_described_can_be_set():
    """Every value that `describe` shows, put into the environment, gives the same settings."""
    settings = load({"ATTACHD_BLOCK_SIZE": "3MiB", "ATTACHD_TRUSTED_PROXIES": "10.0.0.0/8,fd00::/8"})
    shown = load({row.name: row.value for row in describe(settings)})
    assert shown.model_copy(update={"keys": None, "database": None}) == settings


@given(size=st.integers(1, 10**15 - 1), seconds=st.integers(1, 86_400))
def test_sizes_and_durations_are_shown_exactly(size, seconds):
    """No size or duration changes by being shown and read again."""
    settings = load({"ATTACHD_MAX_SIZE": str(size), "ATTACHD_UPLOAD_IDLE": str(seconds)})
    rows = {row.name: row.value for row in describe(settings)}
    assert load({"ATTACHD_MAX_SIZE": rows["ATTACHD_MAX_SIZE"]}).max_size == size
    assert parse_duration(rows["ATTACHD_UPLOAD_IDLE"]) == seconds


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_says_what_it_is(name):
    """Each setting has one sentence of help, as check-config and the docs show it."""
    description = Settings.model_fields[name].description
    assert description is not None
    assert description.endswith(".")


def test_check_config_prints_every_setting():
    """`check-config` prints each setting once with its effective value."""
    output = CliRunner().invoke(check_config, obj=load({"ATTACHD_GRACE": "9s"})).output
    assert "ATTACHD_GRACE=9s" in output.splitlines()
    assert len(output.splitlines()) == len(Settings.model_fields)
