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
        ("clamd", "", None),
        ("clamd", "clamav.internal:3310", TcpAddress("clamav.internal", 3310)),
        ("clamd", "unix:/run/clamav/clamd.ctl", UnixAddress(Path("/run/clamav/clamd.ctl"))),
        ("quota_bytes", "10GiB", 10 * 2**30),
        ("quota_bytes", "0", 0),
        ("quota_bytes", "", None),
        ("quota_pending", "5", 5),
        ("quota_pending", "", None),
    ],
)
def test_good_values_are_read(name, text, value):
    """The text of the environment becomes the value meant."""
    assert getattr(load({f"ATTACHD_{name.upper()}": text}), name) == value


#: what S3 needs to be set
S3 = {"ATTACHD_STORAGE": "s3", "ATTACHD_S3_BUCKET": "chat-files"}

#: lesson K4: settings that cannot work: environment, file, setting named, words that say what would be right
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
    ({"ATTACHD_QUOTA_BYTES": "10G"}, None, "ATTACHD_QUOTA_BYTES", "64MiB"),
    ({"ATTACHD_QUOTA_PENDING": "0"}, None, "ATTACHD_QUOTA_PENDING", "from 1 to"),
    ({"ATTACHD_MAX_SERVICE_TOKEN_LIFE": "1y"}, None, "ATTACHD_MAX_SERVICE_TOKEN_LIFE", "24h or 7d"),
    ({"ATTACHD_STORAGE": "s3"}, None, "ATTACHD_S3_BUCKET: not set", "the name of a bucket"),
    (S3 | {"ATTACHD_S3_BUCKET": "s3://chat"}, None, "ATTACHD_S3_BUCKET", "no s3://"),
    (S3 | {"ATTACHD_S3_BUCKET": "Chat_Files"}, None, "ATTACHD_S3_BUCKET", "a-z, 0-9"),
    (S3 | {"ATTACHD_S3_BUCKET": "chat..files"}, None, "ATTACHD_S3_BUCKET", "a-z, 0-9"),
    (S3 | {"ATTACHD_S3_BUCKET": "192.0.2.1"}, None, "ATTACHD_S3_BUCKET", "no IP address"),
    (S3 | {"ATTACHD_S3_BUCKET": "ab"}, None, "ATTACHD_S3_BUCKET", "3 to 63"),
    (S3 | {"ATTACHD_S3_ENDPOINT": "minio:9000"}, None, "ATTACHD_S3_ENDPOINT", "http://"),
    (S3 | {"ATTACHD_S3_ENDPOINT": "http://minio:9000/chat"}, None, "ATTACHD_S3_ENDPOINT", "no path"),
    (S3 | {"ATTACHD_S3_ENDPOINT": "http://minio:9000?a"}, None, "ATTACHD_S3_ENDPOINT", "no query"),
    (S3 | {"ATTACHD_S3_PUBLIC_ENDPOINT": "https://a@s3.example.com"}, None, "ATTACHD_S3_PUBLIC_ENDPOINT", "no user"),
    (S3 | {"ATTACHD_S3_REGION": "eu central"}, None, "ATTACHD_S3_REGION", "eu-central-1"),
    (S3 | {"ATTACHD_S3_REGION": "eu.evil.example"}, None, "ATTACHD_S3_REGION", "hyphens"),
    (S3 | {"ATTACHD_S3_PREFIX": "/chat"}, None, "ATTACHD_S3_PREFIX", "none in front"),
    (S3 | {"ATTACHD_S3_PREFIX": "chat//files/"}, None, "ATTACHD_S3_PREFIX", "single slashes"),
    (S3 | {"ATTACHD_S3_PREFIX": "chat/../"}, None, "ATTACHD_S3_PREFIX", "no . or .. alone"),
    (S3 | {"ATTACHD_S3_PREFIX": "ch\u00e4t/"}, None, "ATTACHD_S3_PREFIX", "letters, digits"),
    (S3 | {"ATTACHD_S3_PREFIX": "a" * 256}, None, "ATTACHD_S3_PREFIX", "256 characters"),
    (S3 | {"ATTACHD_S3_ADDRESSING": "dns"}, None, "ATTACHD_S3_ADDRESSING", "'virtual'"),
    (S3 | {"ATTACHD_S3_PART_SIZE": "4MiB"}, None, "ATTACHD_S3_PART_SIZE", "from 5MiB to 5GiB"),
    (
        S3 | {"ATTACHD_S3_PART_SIZE": "5GiB", "ATTACHD_BLOCK_SIZE": "48MiB"},
        None,
        "ATTACHD_S3_PART_SIZE",
        "whole blocks",
    ),
    ({"ATTACHD_S3_BUCKET": "chat"}, None, "ATTACHD_S3_BUCKET", "storage to s3"),
    ({"ATTACHD_S3_PART_SIZE": "16MiB"}, None, "ATTACHD_S3_PART_SIZE", "storage to s3"),
    ({"ATTACHD_DOWNLOAD_MODE": "redirect"}, None, "ATTACHD_DOWNLOAD_MODE", "needs storage s3"),
    (S3 | {"ATTACHD_DOWNLOAD_MODE": "accel"}, None, "ATTACHD_DOWNLOAD_MODE", "proxy or redirect"),
    (S3 | {"ATTACHD_BLOCK_SIZE": "128MiB"}, None, "ATTACHD_BLOCK_SIZE", "at most 64MiB"),
    (S3 | {"ATTACHD_MAX_SIZE": "6TiB"}, None, "ATTACHD_MAX_SIZE", "at most 5TiB"),
    (S3 | {"ATTACHD_BUFFER_LIMIT": "63MiB"}, None, "ATTACHD_BUFFER_LIMIT", "at least 64MiB"),
    (S3 | {"ATTACHD_S3_PART_SIZE": "64MiB"}, None, "ATTACHD_BUFFER_LIMIT: 256MiB", "at least 512MiB"),
    (S3 | {"ATTACHD_BLOCK_SIZE": "33MiB"}, None, "ATTACHD_BUFFER_LIMIT: 256MiB", "at least 264MiB"),
    (S3 | {"ATTACHD_MAX_SIZE": "5TiB"}, None, "ATTACHD_BUFFER_LIMIT: 256MiB", "lower s3_part_size, block_size or max"),
    ({}, "storage = 's3'\ns3_bucket = 7", "ATTACHD_S3_BUCKET (in a.toml)", "3 to 63"),
    ({"ATTACHD_CLAMD": "clamd"}, None, "ATTACHD_CLAMD", "HOST:PORT"),
    ({"ATTACHD_CLAMD": "clamd:0"}, None, "ATTACHD_CLAMD", "where a server listens"),
    ({"ATTACHD_CLAMD": "unix:clamd.ctl"}, None, "ATTACHD_CLAMD", "unix:/PATH"),
    ({"ATTACHD_CLAMD": "c:3310", "ATTACHD_CLAMD_MAX_SIZE": "2GiB"}, None, "ATTACHD_CLAMD_MAX_SIZE", "from 1KiB"),
    ({"ATTACHD_CLAMD": "c:3310", "ATTACHD_SCAN_SKIPPED": "skip"}, None, "ATTACHD_SCAN_SKIPPED", "'refuse'"),
    ({"ATTACHD_CLAMD": "c:3310", "ATTACHD_SCAN_FAILURE": "fail"}, None, "ATTACHD_SCAN_FAILURE", "'closed'"),
    ({"ATTACHD_CLAMD_MAX_SIZE": "1MiB"}, None, "ATTACHD_CLAMD_MAX_SIZE", "or set clamd"),
    ({"ATTACHD_SCAN_SKIPPED": "refuse"}, None, "ATTACHD_SCAN_SKIPPED", "or set clamd"),
    ({"ATTACHD_SCAN_FAILURE": "open"}, None, "ATTACHD_SCAN_FAILURE", "or set clamd"),
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


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("s3_bucket", "a.b-c0", "a.b-c0"),
        ("s3_endpoint", "HTTP://MinIO:9000/", "http://minio:9000"),
        ("s3_endpoint", "", None),
        ("s3_public_endpoint", "https://[2001:db8::1]:9000", "https://[2001:db8::1]:9000"),
        ("s3_region", "auto", "auto"),
        ("s3_region", "RegionOne", "RegionOne"),
        ("s3_prefix", "", ""),
        ("s3_prefix", "chat/files", "chat/files/"),
        ("s3_prefix", "a..b/.c/", "a..b/.c/"),
        ("s3_addressing", "path", "path"),
        ("download_mode", "redirect", "redirect"),
        ("buffer_limit", "64MiB", 64 * 2**20),
    ],
)
def test_good_values_for_s3_are_read(name, text, value):
    """The text of the environment becomes the value meant, and the defaults around it do with a bucket alone."""
    assert getattr(load(S3 | {f"ATTACHD_{name.upper()}": text}), name) == value


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name.startswith("s3_")])
def test_an_s3_setting_at_its_default_is_no_contradiction(name):
    """What check-config prints for the disk can be set for the disk."""
    (row,) = [row for row in describe(load({})) if row.name == f"ATTACHD_{name.upper()}"]
    assert load({row.name: row.value}) == load({})


@pytest.mark.parametrize(
    ("part", "block", "most", "planned"),
    [
        ("8MiB", "8MiB", "4GiB", 8 * 2**20),
        ("5MiB", "3MiB", "4GiB", 6 * 2**20),
        ("8MiB", "5MiB", "4GiB", 10 * 2**20),
        ("5MiB", "1MiB", "59994MiB", 6 * 2**20),
        ("5MiB", "1MiB", "60000MiB", 7 * 2**20),
    ],
)
def test_parts_are_whole_blocks_and_fewer_than_ten_thousand(part, block, most, planned):
    """The part that memory is reckoned with is a multiple of the block, and large enough for max_size."""
    env = S3 | {"ATTACHD_S3_PART_SIZE": part, "ATTACHD_BLOCK_SIZE": block, "ATTACHD_MAX_SIZE": most}
    assert load(env).s3_planned_part == planned


def test_every_wrong_setting_is_named_at_once():
    """Three wrong settings give three lines, so that nobody starts the service four times."""
    with pytest.raises(SettingsError) as caught:
        load({"ATTACHD_GRACE": "soon", "ATTACHD_LOG_FORMAT": "xml", "ATTACHD_GRASE": "1s"})
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("name", ["DATABASE", "PUBLIC_URL", "S3_ENDPOINT"])
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
    settings = load({
        "ATTACHD_BLOCK_SIZE": "3MiB", "ATTACHD_TRUSTED_PROXIES": "10.0.0.0/8,fd00::/8", "ATTACHD_QUOTA_BYTES": "3GiB",
    })  # fmt: skip
    shown = load({row.name: row.value for row in describe(settings)})
    assert shown.model_copy(update={"keys": None, "database": None}) == settings


def test_what_is_described_of_s3_can_be_set():
    """So it is with a bucket, an endpoint and a prefix."""
    more = {"ATTACHD_S3_ENDPOINT": "http://minio:9000", "ATTACHD_S3_PREFIX": "chat/", "ATTACHD_S3_PART_SIZE": "16MiB"}
    settings = load(S3 | more | {"ATTACHD_DOWNLOAD_MODE": "redirect"})
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
