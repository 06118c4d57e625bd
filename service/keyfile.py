"""The key set as a file: read again when it changes, written so that no reader sees half of it.

Guarantees: a file that breaks while the service runs keeps the last good set in force and is
reported once; a write goes to a temporary file in the same directory, is synced and renamed, mode
0600; two commands that change the file at once do not lose each other's change (an advisory lock
on `keys.json.lock` beside it). Needs: read access to the file; to change it, write access to its
directory.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from service.keyset import Key, KeySet, KeySetError

DEFAULT_ISSUER: Final = "attachd"
CHECK_SECONDS: Final = 1.0

#: mtime and ctime in ns, size, inode: a rename changes the inode even within one tick of the clock, and what
#: makes a file readable again (chmod, chown) changes the ctime only
Stamp: TypeAlias = tuple[int, int, int, int]
#: who else than its owner and its group may read a file
_OTHERS_READ: Final = 0o004


class KeyFile:
    """The key set in a file. All methods but `keys` block for a moment; none is for an event loop."""

    def __init__(
        self,
        path: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        on_broken: Callable[[KeySetError], None] | None = None,
        on_loaded: Callable[[KeySet], None] | None = None,
    ) -> None:
        """`on_loaded`: called with each set that comes into force, the first one too, and when a broken file is mended.
        Both are called on the thread that looks.
        """
        self._path = path
        self._monotonic = monotonic
        self._on_broken = on_broken
        self._on_loaded = on_loaded
        self._keys: KeySet | None = None
        self._stamp: Stamp | None = None
        #: what was wrong with the file at the last look, and its stamp then
        self._broken: tuple[Stamp | None, str] | None = None
        self._checked_at = 0.0

    def keys(self) -> KeySet:
        """The set that the last look at the file gave, without looking: for the event loop.

        Raises:
            KeySetError: there was no look yet.
        """
        if self._keys is None:
            raise KeySetError("the key set has not been read yet")
        return self._keys

    def current(self) -> KeySet:
        """The set in the file, at most a second old.

        Raises:
            KeySetError: the file is missing or broken, and there is no earlier set to keep.
        """
        now = self._monotonic()
        if self._keys is not None and now - self._checked_at < CHECK_SECONDS:
            return self._keys
        self._checked_at = now
        return self.refresh()

    def refresh(self) -> KeySet:
        """The set in the file now; an earlier set where the file has become unreadable or wrong.

        Raises:
            KeySetError: as `current`.
        """
        stamp = self._look()
        if self._keys is not None and stamp is not None and stamp == self._stamp:
            return self._keys
        try:
            keys = self._read()
        except KeySetError as error:
            if self._keys is None:
                raise
            # Not the stamp: what kept the file from being read may end without a change of the file.
            self._stamp, before, self._broken = None, self._broken, (stamp, str(error))
            if self._on_broken is not None and self._broken != before:
                self._on_broken(error)
            return self._keys
        news = self._broken is not None or keys != self._keys
        self._keys, self._stamp, self._broken = keys, stamp, None
        if news and self._on_loaded is not None:
            self._on_loaded(keys)
        return keys

    def exposed(self) -> bool:
        """Whether everybody on this machine may read the file."""
        try:
            return bool(self._path.stat().st_mode & _OTHERS_READ)
        except OSError:
            return False

    def create_default(self) -> Key | None:
        """The file exists: its one new HS256 key if this call made it, None if it was there.

        Of several processes that start at once, one makes the file.

        Raises:
            KeySetError: it cannot be written.
        """
        with self._locked():
            if self._path.exists():
                return None
            key = new_key("HS256", issuer=DEFAULT_ISSUER, now=time.time())
            self._write(KeySet((key,)))
            return key

    def update(self, change: Callable[[KeySet], KeySet]) -> KeySet:
        """The file holds what `change` made of it; a missing file counts as an empty set.

        Raises:
            KeySetError: the file is broken, cannot be written, or `change` raised it.
        """
        with self._locked():
            keys = change(self._read() if self._path.exists() else KeySet())
            self._write(keys)
            return keys

    def _look(self) -> Stamp | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino

    def _read(self) -> KeySet:
        try:
            return KeySet.parse(self._path.read_bytes())
        except FileNotFoundError:
            raise KeySetError(f"no key set at {self._path}; `attachd keys new` makes one") from None
        except OSError as error:
            raise KeySetError(f"cannot read the key set {self._path}: {error.strerror}") from error
        except KeySetError as error:
            raise KeySetError(f"{self._path}: {error}") from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # A file of its own, which stays: the key set is replaced by rename and cannot carry a lock.
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            _give(lock, self._path if self._path.exists() else self._path.parent)
        except OSError as error:
            raise KeySetError(f"cannot write beside the key set {self._path}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _write(self, keys: KeySet) -> None:
        # A link is followed, so that the file it points to is replaced and not the link.
        target = self._path.resolve()
        try:
            descriptor, name = tempfile.mkstemp(prefix=".keys-", dir=target.parent)  # mode 0600
            try:
                _give(descriptor, target if target.exists() else target.parent)
                with open(descriptor, "wb") as file:
                    file.write(keys.dump().encode())
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(name, target)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
                raise
            directory = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise KeySetError(f"cannot write the key set {self._path}: {error.strerror}") from error


def _give(descriptor: int, like: Path) -> None:
    """Called by root, a file belongs to whoever the other belongs to: the service must read it."""
    with contextlib.suppress(OSError):
        held = like.stat()
        os.fchown(descriptor, held.st_uid, held.st_gid)


def new_key(alg: str, *, issuer: str, now: float) -> Key:
    """A fresh active key with a random kid, private half included. Raises KeySetError."""
    members: dict[str, Any]
    if alg == "HS256":
        members = {"kty": "oct", "k": _base64url(secrets.token_bytes(32))}
    elif alg == "EdDSA":
        edwards = Ed25519PrivateKey.generate()
        members = {
            "kty": "OKP",
            "crv": "Ed25519",
            "x": _base64url(edwards.public_key().public_bytes_raw()),
            "d": _base64url(edwards.private_bytes_raw()),
        }
    else:
        numbers = ec.generate_private_key(ec.SECP256R1()).private_numbers()
        members = {
            "kty": "EC",
            "crv": "P-256",
            "x": _base64url(numbers.public_numbers.x.to_bytes(32)),
            "y": _base64url(numbers.public_numbers.y.to_bytes(32)),
            "d": _base64url(numbers.private_value.to_bytes(32)),
        }
    kid = f"k_{secrets.token_hex(6)}"
    return Key.parse({"kid": kid, "alg": alg, "iss": issuer, "state": "active", "created": int(now), **members})


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()
