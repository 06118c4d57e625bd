"""`attachd link`, `attachd token` and `attachd keys`, as an operator meets them."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import click
import pytest
from click.testing import CliRunner, Result

from service.commands.links import keys, link, token
from service.keyfile import KeyFile
from service.links import VerifiedUpload, verify_download, verify_service, verify_upload
from service.model import FileId
from service.settings import Settings, load

FILE_ID = FileId("f_" + "a2" * 13)
PUBLIC_URL = "https://files.example/up"
GROUPS: dict[str, click.Command] = {"link": link, "token": token, "keys": keys}


def load_settings(data: Path) -> Settings:
    return load({"ATTACHD_DATA": str(data)})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = load_settings(tmp_path)
    KeyFile(made.keys_path).create_default()
    return made


def run(settings: Settings, *words: str) -> Result:
    return CliRunner().invoke(GROUPS[words[0]], words[1:], obj=settings)


def printed(settings: Settings, *words: str) -> str:
    result = run(settings, *words)
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("\n")
    assert result.stdout.count("\n") == 1
    return result.stdout.rstrip("\n")


def sig(url: str) -> str:
    return parse_qs(urlsplit(url).query)["sig"][0]


def upload(settings: Settings, *words: str) -> VerifiedUpload:
    held = KeyFile(settings.keys_path).current()
    text = sig(printed(settings, "link", "upload", *words))
    return verify_upload(text, held, now=time.time(), audience=settings.base_url, max_life_seconds=86_400)


def test_an_upload_link_begins_with_the_listen_address(settings: Settings) -> None:
    """Without a public URL the link is usable on this machine, and its audience is what it begins with."""
    url = printed(settings, "link", "upload")
    assert url.startswith("http://127.0.0.1:8080/files?sig=")
    assert upload(settings).terms.max_size == settings.max_size


def test_links_begin_with_the_public_url(settings: Settings) -> None:
    """The public URL is what links begin with and what they are for."""
    public = settings.model_copy(update={"public_url": PUBLIC_URL})
    assert printed(public, "link", "upload").startswith(f"{PUBLIC_URL}/files?sig=")
    assert upload(public).kid


def test_every_option_of_an_upload_link_is_in_it(settings: Settings) -> None:
    """What the command line says is what the service will hold the upload to."""
    line = "--max 2MiB --size 1MiB --type image/* --type video/mp4 --owner u1 --ref chat:7 --hold 1d --ttl 7d"
    words = [*shlex.split(line), "--expires", "90m"]
    terms = upload(
        settings, *words, "--file-id", FILE_ID, "--sha256", "AB" * 32, "--meta", '{"a": 1}'
    ).terms  # fmt: skip
    assert (terms.max_size, terms.size, terms.types, terms.owner) == (2 << 20, 1 << 20, ("image/*", "video/mp4"), "u1")
    assert (terms.ref, terms.hold_seconds, terms.ttl_seconds) == ("chat:7", 86_400, 604_800)
    assert (terms.file_id, terms.sha256, terms.meta) == (FILE_ID, "ab" * 32, {"a": 1})
    assert 5300 < terms.expires_at - time.time() <= 5400


def test_links_differ(settings: Settings) -> None:
    """Each link has a jti of its own."""
    assert upload(settings).terms.jti != upload(settings).terms.jti


def test_a_new_file_id_is_told_beside_the_link(settings: Settings) -> None:
    """`--file-id new` names the id on standard error, so that standard output is the link alone."""
    result = run(settings, "link", "upload", "--file-id", "new")
    held = KeyFile(settings.keys_path).current()
    terms = verify_upload(
        sig(result.stdout.strip()), held, now=time.time(), audience=None, max_life_seconds=86_400
    ).terms  # fmt: skip
    assert result.stderr == f"file id: {terms.file_id}\n"


def test_a_download_link_has_name_and_disposition(settings: Settings) -> None:
    """The name stands in the address and in the token, and `--inline` asks for inline."""
    url = printed(settings, "link", "download", FILE_ID, "--expires", "7d", "--filename", "a ü.png", "--inline")
    assert urlsplit(url).path == f"/d/{FILE_ID}/a%20%C3%BC.png"
    held = KeyFile(settings.keys_path).current()
    verified = verify_download(
        sig(url), held, now=time.time(), audience=settings.base_url, file_id=FILE_ID, max_life_seconds=604_800
    )
    assert (verified.filename, verified.disposition) == ("a ü.png", "inline")


def test_a_service_token_has_the_scopes_named(settings: Settings) -> None:
    """`--scope` may be repeated, and the token has these scopes only."""
    text = printed(settings, "token", "service", "--scope", "files:read", "--scope", "events:read")
    held = KeyFile(settings.keys_path).current()
    verified = verify_service(
        text, held, now=time.time(), audience=settings.base_url, scope="events:read", max_life_seconds=3600
    )
    assert verified.scopes == {"files:read", "events:read"}


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["--max", "4G"], "--max: 'G' is not a unit of size"),
        (["--max", "lots"], "--max: 'lots' is not a size"),
        (["--max", "5GiB"], "--max: the service takes at most 4294967296 bytes"),
        (["--max", "1MiB", "--size", "2MiB"], "--size: must not be more than max"),
        (["--size", "8GiB"], "--size: must not be more than max"),
        (["--expires", "soon"], "--expires: 'soon' is not a duration"),
        (["--expires", "0"], "--expires: must be from 1s to 1d"),
        (["--expires", "25h"], "--expires: must be from 1s to 1d"),
        (["--type", "image"], "--type: must be a list"),
        (["--owner", "a b"], "--owner: must be"),
        (["--uses", "0"], "--uses: must be"),
        (["--uses", "2", "--file-id", FILE_ID], "--uses: must be 1"),
        (["--file-id", "f_x"], "--file-id: must be"),
        (["--sha256", "ab"], "--sha256: must be"),
        (["--hold", "0"], "--hold: must be"),
        (["--ttl", "-1"], "--ttl: '-1' is not a duration"),
        (["--ref", ""], "--ref: must be"),
        (["--meta", "[]"], "--meta: must be a JSON object"),
        (["--meta", "{"], "--meta: must be a JSON object"),
        (["--meta", '{"a": NaN}'], "--meta: must be a JSON object"),
        (["--meta", json.dumps({"a": "x" * 1100})], "--meta: must be a JSON object of at most 1024 bytes"),
    ],
)
def test_a_wrong_option_is_one_line(settings: Settings, words: list[str], start: str) -> None:
    """A wrong argument prints one line that names the option, no link, and ends with 2."""
    result = run(settings, "link", "upload", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"Error: {start}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["f_x"], "FILE_ID: must be"),
        ([FILE_ID, "--expires", "8d"], "--expires: must be from 1s to 7d"),
        ([FILE_ID, "--filename", "x" * 256], "--filename: must be"),
    ],
)
def test_a_wrong_download_option_is_one_line(settings: Settings, words: list[str], start: str) -> None:
    """A wrong argument prints one line that names it, no link, and ends with 2."""
    result = run(settings, "link", "download", *words)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith(f"Error: {start}")


def test_a_service_token_that_the_service_would_refuse_is_not_signed(settings: Settings) -> None:
    """One that is to live longer than is accepted is a wrong argument."""
    result = run(settings, "token", "service", "--scope", "files:read", "--expires", "91d")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "Error: --expires: must be from 1s to 90d\n"


@pytest.mark.parametrize("content", [None, "{", '{"keys": []}'])
@pytest.mark.parametrize(
    "words", [["link", "upload"], ["link", "download", FILE_ID], ["token", "service", "--scope", "files:read"]]
)
def test_a_key_set_that_will_not_do_is_one_line(tmp_path: Path, content: str | None, words: list[str]) -> None:
    """A missing, broken or empty key set prints one line, no link, and ends with 1."""
    settings = load_settings(tmp_path)
    if content is not None:
        settings.keys_path.write_text(content)
    result = run(settings, *words)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith("Error: ")


@pytest.mark.parametrize("alg", ["EdDSA", "ES256", "HS256"])
def test_a_new_key_signs_from_then_on(settings: Settings, alg: str) -> None:
    """`keys new` prints the kid of the key that the next link is signed with."""
    kid = printed(settings, "keys", "new", "--alg", alg, "--issuer", "chat")
    verified = upload(settings)
    assert (verified.kid, verified.terms.issuer) == (kid, "chat")


def test_keys_new_makes_the_first_file(tmp_path: Path) -> None:
    """Without a key set the command begins one."""
    settings = load_settings(tmp_path / "var")
    kid = printed(settings, "keys", "new")
    assert KeyFile(settings.keys_path).current().signing_key().kid == kid


def test_a_wrong_issuer_is_one_line(settings: Settings) -> None:
    """A key that the set would not take is not written."""
    before = settings.keys_path.read_bytes()
    result = run(settings, "keys", "new", "--issuer", "a b")
    assert (result.exit_code, result.stderr.count("\n"), settings.keys_path.read_bytes()) == (2, 1, before)


def test_the_list_of_keys_has_no_secrets(settings: Settings) -> None:
    """`keys list` tells kid, algorithm, issuer, state and whether the key signs, and no key material."""
    printed(settings, "keys", "new", "--alg", "EdDSA", "--issuer", "chat")
    result = run(settings, "keys", "list")
    held = KeyFile(settings.keys_path).current().keys
    rows = [line.split()[:5] for line in result.stdout.splitlines()]
    assert rows == [
        ["KID", "ALG", "ISSUER", "STATE", "SIGNS"],
        [held[0].kid, "HS256", "attachd", "active", "yes"],
        [held[1].kid, "EdDSA", "chat", "active", "yes"],
    ]
    assert not any(key.jwk.get("k", key.jwk.get("d")) in result.stdout for key in held)


@pytest.mark.parametrize(("words", "state"), [([], "verify"), (["--revoke"], "revoked")])
def test_retiring_a_key(settings: Settings, words: list[str], state: str) -> None:
    """`keys retire` stops the signing, with `--revoke` the verifying too; the last one gone is told."""
    kid = KeyFile(settings.keys_path).current().keys[0].kid
    result = run(settings, "keys", "retire", kid, *words)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "keys new" in result.stderr
    assert str(KeyFile(settings.keys_path).current().keys[0].state) == state


def test_retiring_an_unknown_key_is_one_line(settings: Settings) -> None:
    """A misspelt kid changes nothing and ends with 1."""
    result = run(settings, "keys", "retire", "nobody")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
