"""The key set: what its file must hold, how it changes, when it is read again."""

from __future__ import annotations

import base64
import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from service.keyfile import KeyFile, new_key
from service.keyset import ALGORITHMS, Key, KeySet, KeySetError, KeyState

NOW = 1_800_000_000


def base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def jwk(alg: str, /, **changes: Any) -> dict[str, Any]:
    """A good JWK with some members changed, or left out where None is given."""
    merged = {**new_key(alg, issuer="chat", now=NOW).jwk, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def parse(*jwks: object) -> KeySet:
    return KeySet.parse(json.dumps({"keys": jwks}))


class Monotonic:
    """A clock that stands still until told."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


# The set.


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_set_reads_back_from_its_dump(alg: str) -> None:
    """Nothing of a key is lost on the way to the file, members that we do not know included."""
    keys = parse(jwk(alg, kid="one", note="by hand"), jwk(alg, kid="two", state="verify"))
    again = KeySet.parse(keys.dump())
    assert again == keys
    assert [key.jwk for key in again.keys] == [key.jwk for key in keys.keys]


@pytest.mark.parametrize("alg", ["EdDSA", "ES256"])
def test_a_public_key_only_verifies(alg: str) -> None:
    """A set of public halves is good, and cannot sign."""
    keys = parse(jwk(alg, d=None))
    assert keys.keys[0].signer is None
    with pytest.raises(KeySetError, match="keys new"):
        keys.signing_key()


@pytest.mark.parametrize("text", ["", "nope", "[]", "{}", '{"keys": {}}', '"keys"', b"\xff", "[" * 5000])
def test_what_is_no_jwk_set_says_so(text: str | bytes) -> None:
    """A file of another form is refused with the form that is right."""
    with pytest.raises(KeySetError, match="JWK Set"):
        KeySet.parse(text)


ES = jwk("ES256")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("text", "key number 1: must be a JSON object"),
        (jwk("EdDSA", kid=None), "key number 1: kid"),
        (jwk("EdDSA", kid=""), "key number 1: kid"),
        (jwk("EdDSA", kid="a b"), "key number 1: kid"),
        (jwk("EdDSA", kid="a" * 65), "key number 1: kid"),
        (jwk("EdDSA", kid="k", alg=None), "key k: alg must be one of EdDSA, ES256, HS256"),
        (jwk("EdDSA", kid="k", alg="none"), "key k: alg must be one of"),
        (jwk("EdDSA", kid="k", alg="RS256"), "key k: alg must be one of"),
        (jwk("EdDSA", kid="k", alg=["EdDSA"]), "key k: alg must be one of"),
        (jwk("EdDSA", kid="k", alg="HS256"), "key k: alg HS256 needs kty oct"),
        (jwk("EdDSA", kid="k", kty="EC"), "key k: alg EdDSA needs kty OKP"),
        (jwk("EdDSA", kid="k", crv="Ed448"), "key k: alg EdDSA needs crv Ed25519"),
        (jwk("ES256", kid="k", crv="P-384"), "key k: alg ES256 needs crv P-256"),
        (jwk("EdDSA", kid="k", use="enc"), "key k: use must be sig"),
        (jwk("EdDSA", kid="k", iss=None), "key k: iss must name the issuer"),
        (jwk("EdDSA", kid="k", iss="a b"), "key k: iss must name the issuer"),
        (jwk("EdDSA", kid="k", state=None), "key k: state must be one of active, verify, revoked"),
        (jwk("EdDSA", kid="k", state="on"), "key k: state must be one of"),
        (jwk("EdDSA", kid="k", state=["active"]), "key k: state must be one of"),
        (jwk("EdDSA", kid="k", created="today"), "key k: created must be whole seconds"),
        (jwk("EdDSA", kid="k", created=True), "key k: created must be whole seconds"),
        (jwk("EdDSA", kid="k", x=None), "key k: x must be base64url"),
        (jwk("EdDSA", kid="k", x=7), "key k: x must be base64url"),
        (jwk("EdDSA", kid="k", x="ab=="), "key k: x must be base64url"),
        (jwk("EdDSA", kid="k", x="a"), "key k: x must be base64url"),
        (jwk("EdDSA", kid="k", x="abcd"), "key k: x has 3 bytes; it must have 32"),
        (jwk("EdDSA", kid="k", d="abcd"), "key k: d has 3 bytes; it must have 32"),
        (jwk("EdDSA", kid="k", x=jwk("EdDSA")["x"]), "key k: x is not the public half of d"),
        (jwk("ES256", kid="k", x=base64url(b"\x01" * 32)), "key k: x and y are not a point of P-256"),
        (jwk("ES256", kid="k", d=base64url(bytes(32))), "key k: d is not a private key of P-256"),
        (jwk("ES256", kid="k", x=ES["x"], y=ES["y"]), "key k: x and y are not the public half of d"),
        (jwk("HS256", kid="k", k=None), "key k: k must be base64url"),
        (jwk("HS256", kid="k", k=base64url(b"x" * 31)), "key k: the secret has 31 bytes; HS256 needs 32 or more"),
        (jwk("HS256", kid="k", k=base64url(json.dumps(ES).encode())), "key k: k looks like a key file"),
        (jwk("HS256", kid="k", k=base64url(b"-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----")), "looks like"),
    ],
)
def test_a_wrong_key_is_named(wrong: object, sentence: str) -> None:
    """The error names the key, what is wrong and what would be right, and shows no secret."""
    with pytest.raises(KeySetError) as caught:
        parse(wrong)
    assert sentence in str(caught.value)
    if isinstance(wrong, dict):
        assert not any(
            str(wrong[name]) in str(caught.value) for name in ("d", "k") if len(str(wrong.get(name, ""))) > 8
        )


def test_two_keys_of_one_kid_are_refused() -> None:
    """A kid names one key."""
    with pytest.raises(KeySetError, match="key k: there is another key of this kid"):
        parse(jwk("EdDSA", kid="k"), jwk("HS256", kid="k"))


def test_a_key_shows_no_secret() -> None:
    """`repr` of keys and sets has no key material in it."""
    keys = parse(jwk("HS256"), jwk("EdDSA"), jwk("ES256"))
    secrets = [key.jwk.get("d") or key.jwk["k"] for key in keys.keys]
    assert not any(secret in repr(keys) for secret in secrets)


def test_the_newest_active_key_signs() -> None:
    """A new key takes over at once, and the one before it again when it is retired."""
    old, new, mail = (new_key("HS256", issuer=issuer, now=NOW) for issuer in ("chat", "chat", "mail"))
    keys = KeySet((old,)).with_key(new)
    assert keys.signing_key() == new
    assert keys.retire(new.kid).signing_key() == old
    assert keys.with_key(mail).signing_key("chat") == new


def test_retiring_only_ever_takes_away() -> None:
    """active, verify, revoked: no order of `retire` brings a key back."""
    key = new_key("EdDSA", issuer="chat", now=NOW)
    steps: list[KeyState] = []
    keys = KeySet((key,))
    for revoke in (False, False, True, False):
        keys = keys.retire(key.kid, revoke=revoke)
        steps.append(keys.keys[0].state)
    assert steps == [KeyState.VERIFY, KeyState.VERIFY, KeyState.REVOKED, KeyState.REVOKED]


def test_retiring_an_unknown_key_names_the_known() -> None:
    """A misspelt kid is answered with those there are."""
    with pytest.raises(KeySetError, match="no key x in the set; there are: k"):
        parse(jwk("EdDSA", kid="k")).retire("x")


# The file.


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def write(path: Path, *jwks: object) -> None:
    path.write_text(json.dumps({"keys": jwks}))


def test_a_changed_file_is_in_force_within_a_second(path: Path) -> None:
    """Another set in the file is seen from one second after the last look, and not looked for before."""
    clock = Monotonic()
    write(path, jwk("HS256", kid="old"))
    file = KeyFile(path, monotonic=clock)
    file.current()
    write(path, jwk("HS256", kid="new"), jwk("HS256", kid="newer"))
    clock.seconds += 0.9
    assert file.current().get("new") is None
    clock.seconds += 0.2
    assert file.current().get("new") is not None


def test_a_replaced_file_of_equal_size_and_time_is_seen(path: Path) -> None:
    """A rename within one tick of the file system's clock does not hide a change."""
    write(path, jwk("HS256", kid="a"))
    file = KeyFile(path)
    file.refresh()
    other = path.with_name("other")
    write(other, jwk("HS256", kid="b"))
    times = path.stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.rename(path)
    assert file.refresh().get("b") is not None


@pytest.mark.parametrize("broken", ["", "{", '{"keys": [{}]}', None])
def test_a_broken_file_keeps_the_old_set_and_is_reported_once(path: Path, broken: str | None) -> None:
    """While the file is wrong or gone, the last good set stays; each wrong version is told of once."""
    reports: list[KeySetError] = []
    write(path, jwk("HS256", kid="a"))
    file = KeyFile(path, on_broken=reports.append)
    before = file.refresh()
    if broken is None:
        path.unlink()
    else:
        path.write_text(broken)
    assert [file.refresh() for _ in range(3)] == [before] * 3
    assert len(reports) == 1
    assert str(path) in str(reports[0])


def test_a_mended_file_is_in_force_again(path: Path) -> None:
    """After a broken version the next good one counts."""
    write(path, jwk("HS256", kid="a"))
    file = KeyFile(path)
    file.refresh()
    path.write_text("{")
    file.refresh()
    write(path, jwk("HS256", kid="b"))
    assert file.refresh().get("b") is not None


def test_a_file_that_becomes_readable_is_read_without_a_change_of_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set that was put in place unreadable counts as soon as it can be read; nobody has to touch it again."""
    reports: list[KeySetError] = []
    write(path, jwk("HS256", kid="a"))
    file = KeyFile(path, on_broken=reports.append)
    file.refresh()
    write(path, jwk("HS256", kid="b"), jwk("HS256", kid="c"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", denied)
        assert [file.refresh().get("b") for _ in range(2)] == [None, None]
    assert file.refresh().get("b") is not None
    assert len(reports) == 1


def denied(path: Path) -> bytes:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_change_of_mode_is_a_change(path: Path) -> None:
    """chmod and chown move neither size nor mtime, and are seen."""
    write(path, jwk("HS256", kid="a"))
    file = KeyFile(path)
    before = file._look()
    path.chmod(0o600)
    assert file._look() != before


def test_each_set_that_comes_into_force_is_told_once(path: Path) -> None:
    """The first set, each other one, and the same one after a broken file; nothing when only the time changed."""
    loaded: list[list[str]] = []
    file = KeyFile(path, on_loaded=lambda held: loaded.append([key.kid for key in held.keys]))
    one, two = jwk("HS256", kid="a"), jwk("HS256", kid="b")
    for content in ([one], [one], [one, two], None, [one, two]):
        if content is None:
            path.write_text("{")
        else:
            write(path, *content)
        os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))
        file.refresh()
    assert loaded == [["a"], ["a", "b"], ["a", "b"]]


@pytest.mark.parametrize(("mode", "exposed"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_file_for_everybody_is_exposed(path: Path, mode: int, exposed: bool) -> None:
    """The group may read it, where the operator says so; others may not."""
    write(path, jwk("HS256", kid="a"))
    path.chmod(mode)
    assert KeyFile(path).exposed() is exposed


@pytest.mark.parametrize("content", [None, "{"])
def test_without_any_good_set_there_is_an_error(path: Path, content: str | None) -> None:
    """The first look raises what is wrong, with the path."""
    if content is not None:
        path.write_text(content)
    with pytest.raises(KeySetError, match=str(path)):
        KeyFile(path).current()


def test_keys_never_looks_at_the_file(path: Path) -> None:
    """`keys` gives what was read last, also when the file is gone, and nothing before the first look."""
    write(path, jwk("HS256", kid="a"))
    file = KeyFile(path)
    with pytest.raises(KeySetError, match="not been read"):
        file.keys()
    read = file.current()
    path.unlink()
    assert file.keys() is read


def test_the_first_key_is_hs256_and_private_to_its_owner(tmp_path: Path) -> None:
    """`create_default` makes the directory and a file of mode 0600 with one key that signs."""
    path = tmp_path / "var" / "keys.json"
    made = KeyFile(path).create_default()
    assert made is not None
    assert (made.alg, KeyFile(path).current().signing_key()) == ("HS256", made)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_there_is_left_alone(path: Path) -> None:
    """`create_default` makes nothing of a file that exists, not even of a broken one."""
    path.write_text("{")
    assert KeyFile(path).create_default() is None
    assert path.read_text() == "{"


def test_of_many_first_starts_one_makes_the_key(path: Path) -> None:
    """Processes that start at once agree on one key."""
    made: list[Key | None] = []
    threads = [threading.Thread(target=lambda: made.append(KeyFile(path).create_default())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [key for key in made if key is not None] == list(KeyFile(path).current().keys)


def test_changes_at_once_are_all_kept(path: Path) -> None:
    """Two commands that change the file at the same moment do not lose each other's key."""
    fresh = [new_key("HS256", issuer="chat", now=NOW) for _ in range(8)]
    threads = [
        threading.Thread(target=KeyFile(path).update, args=(lambda keys, key=key: keys.with_key(key),)) for key in fresh
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.kid for key in KeyFile(path).current().keys} == {key.kid for key in fresh}


def test_a_refused_change_leaves_the_file_as_it_was(path: Path) -> None:
    """When the change is refused or the file is broken, nothing is written and nothing left over."""
    path.write_text("{")
    with pytest.raises(KeySetError):
        KeyFile(path).update(lambda keys: keys)
    assert path.read_text() == "{"
    assert not list(path.parent.glob(".keys-*"))


def test_a_link_to_the_key_set_stays_a_link(path: Path) -> None:
    """A change goes to the file that a symbolic link points to."""
    real = path.parent / "real.json"
    KeyFile(real).create_default()
    path.symlink_to(real)
    KeyFile(path).update(lambda keys: keys.retire(keys.keys[0].kid))
    assert path.is_symlink()
    assert KeyFile(real).current().keys[0].state is KeyState.VERIFY


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_new_key_signs(alg: str) -> None:
    """Each algorithm gives an active key with both halves and a kid of its own."""
    one, two = (new_key(alg, issuer="chat", now=NOW + 0.5) for _ in range(2))
    assert one.can_sign
    assert (one.alg, one.issuer, one.created) == (alg, "chat", NOW)
    assert one.kid != two.kid


def test_a_directory_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    """Where no file can be made, the error says so with the path."""
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(KeySetError, match="cannot write"):
        KeyFile(blocker / "keys.json").create_default()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_writes_stays_its_owners(tmp_path: Path) -> None:
    """A key set that root changes is still readable by the user whose service reads it."""
    path = tmp_path / "keys.json"
    KeyFile(path).create_default()
    os.chown(path, 12345, 12346)
    (tmp_path / "keys.json.lock").unlink()
    KeyFile(path).update(lambda held: KeySet((*held.keys, new_key("HS256", issuer="chat", now=0))))
    assert (tmp_path / "keys.json.lock").stat().st_uid == 12345
    assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) == (12345, 12346, 0o600)
