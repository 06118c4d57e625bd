"""Real S3 servers for the tests, each on a free port of 127.0.0.1.

versitygw is the store to trust: it checks signatures and checksums and enforces part sizes, as AWS
does. moto needs nothing but Python and is there for machines without it, and as a second opinion.

    with open_store("versitygw", directory) as store:
        store.client().put_object(Bucket=store.make_bucket(), Key="a", Body=b"...")
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import boto3
import botocore.session
from botocore.config import Config

from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from mypy_boto3_s3 import S3Client

    Session = boto3.session.Session
    Kind = Literal["versitygw", "moto"]

#: seconds until a server that was started must answer, and until one that was told to end has ended
PATIENCE_SECONDS = 30.0
NOWHERE = "/nonexistent/attachd-tests"


def find_versitygw() -> str | None:
    """The program's path: what ATTACHD_TEST_VERSITYGW says, else what is on the PATH."""
    named = os.environ.get("ATTACHD_TEST_VERSITYGW")
    return shutil.which(named or "versitygw")


class Store:
    """A running server that speaks S3; the subclasses know how to start, age and end theirs."""

    kind: ClassVar[Kind]
    region = "us-east-1"

    def __init__(self) -> None:
        # Whoever holds the keys of one run cannot reach the server of another.
        self.access_key = f"AK{secrets.token_hex(8).upper()}"
        self.secret_key = secrets.token_urlsafe(30)
        self.port = 0
        self._direct: S3Client | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, endpoint: str | None = None) -> S3Client:
        """A client that tries once, gives up soon and adds no checksums of its own accord."""
        if endpoint is not None:
            return client(self, endpoint)
        # it takes longer to make than many a test takes without it
        self._direct = self._direct or client(self, self.endpoint)
        return self._direct

    def environment(self) -> dict[str, str]:
        """What a process needs to use the store; nothing that this machine knows of AWS has a say in it."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": f"{NOWHERE}/config",
            "AWS_SHARED_CREDENTIALS_FILE": f"{NOWHERE}/credentials",
            "NO_PROXY": "127.0.0.1",
        }

    def make_bucket(self) -> str:
        """The name of a new, empty bucket."""
        bucket = f"test-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=bucket)
        return bucket

    def objects(self, bucket: str, prefix: str = "") -> dict[str, int]:
        """Key and size of every object below prefix."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", [])}

    def multiparts(self, bucket: str) -> list[tuple[str, str]]:
        """Key and UploadId of every multipart upload neither completed nor aborted; 1000 at most."""
        answer = self.client().list_multipart_uploads(Bucket=bucket)
        assert not answer["IsTruncated"]
        return [(entry["Key"], entry["UploadId"]) for entry in answer.get("Uploads", [])]

    def age(self, bucket: str, seconds: float) -> None:
        """Every object and multipart upload of the bucket is that much older than it was."""
        raise NotImplementedError

    def drop_bucket(self, bucket: str) -> None:
        """The bucket and what is in it are gone, the memory or disk they took is free."""
        raise NotImplementedError

    def close(self) -> None:
        """The server has ended and its port is free."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class VersityStore(Store):
    """versitygw on a directory: objects are files, so their age is the files'."""

    kind = "versitygw"

    def __init__(self, directory: Path, *, program: str, domain: str | None = None) -> None:
        """Args: domain: buckets are names below it as well, for who asks for `BUCKET.DOMAIN`."""
        super().__init__()
        self._domain = domain
        self._buckets = directory / "buckets"
        self._sidecar = directory / "sidecar"
        self._log = directory / "versitygw.log"
        self._program = program
        self._buckets.mkdir(parents=True)
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        keys = {"ROOT_ACCESS_KEY": self.access_key, "ROOT_SECRET_KEY": self.secret_key}
        backend = ["posix", str(self._buckets)]
        if not _has_xattrs(self._buckets):
            self._sidecar.mkdir()
            backend[1:1] = ["--sidecar", str(self._sidecar)]
        # Between finding a free port and listening on it somebody else may take it.
        for _ in range(3):
            self.port = free_port()
            listen = ["--quiet", "--region", self.region, "--port", f"127.0.0.1:{self.port}"]
            if self._domain is not None:
                listen += ["--virtual-domain", f"{self._domain}:{self.port}"]
            with self._log.open("ab") as log:
                process = subprocess.Popen(
                    [self._program, *listen, *backend],
                    env={"PATH": os.environ.get("PATH", ""), "HOME": str(self._buckets.parent), **keys},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            if _answers(self.port, process):
                return process
            _end(process)
        raise RuntimeError(f"versitygw does not start: {self._log.read_text(errors='replace')[-2000:]}")

    def age(self, bucket: str, seconds: float) -> None:
        # LastModified is the mtime of an object's file, Initiated that of a multipart upload's
        # directory (which each part put into it renews).
        for path in (self._buckets / bucket).rglob("*"):
            # rglob sees temporary files that the server is about to rename
            with contextlib.suppress(FileNotFoundError):
                seen = path.stat()
                earlier = round(seconds * 1e9)
                os.utime(path, ns=(seen.st_atime_ns - earlier, seen.st_mtime_ns - earlier))

    def drop_bucket(self, bucket: str) -> None:
        shutil.rmtree(self._buckets / bucket, ignore_errors=True)
        shutil.rmtree(self._sidecar / bucket, ignore_errors=True)

    def close(self) -> None:
        _end(self._process)


def open_store(kind: Kind, directory: Path, *, domain: str | None = None) -> Store:
    """A store of that kind, answering; its files, if it has any, are below directory.

    Args:
        domain: of versitygw, whose buckets are host names below it as well.

    Raises:
        FileNotFoundError: there is no versitygw on this machine.
    """
    if kind == "moto":
        # moto takes a second to import, and patches botocore when it is
        from tests.stores.moto_store import MotoStore  # noqa: PLC0415

        return MotoStore()
    program = find_versitygw()
    if program is None:
        raise FileNotFoundError("versitygw")
    return VersityStore(directory, program=program, domain=domain)


def client(store: Store, endpoint: str) -> S3Client:
    made: S3Client = _session().client(
        "s3",
        endpoint_url=endpoint,
        region_name=store.region,
        aws_access_key_id=store.access_key,
        aws_secret_access_key=store.secret_key,
        config=Config(
            s3={"addressing_style": "path"},
            # Left alone, boto3 signs URLs by version 2.
            signature_version="s3v4",
            connect_timeout=5,
            read_timeout=20,
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # An empty table: the environment's proxies are not asked.
            proxies={},
        ),
    )
    return made


def _session() -> Session:
    # One session reads its models of the API once; clients made of it share them.
    if not _SESSIONS:
        core: Any = botocore.session.Session()
        core.set_config_variable("config_file", f"{NOWHERE}/config")
        core.set_config_variable("credentials_file", f"{NOWHERE}/credentials")
        _SESSIONS.append(boto3.session.Session(botocore_session=core))
    return _SESSIONS[0]


_SESSIONS: list[Session] = []


def _has_xattrs(directory: Path) -> bool:
    try:
        os.setxattr(directory, "user.attachd", b"1")
        os.removexattr(directory, "user.attachd")
    except (OSError, AttributeError):
        return False
    return True


def _answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    """Whether the process listens on the port before it ends or patience does."""
    for _ in _until(time.monotonic() + PATIENCE_SECONDS):
        if process.poll() is not None:
            return False
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    return False


def _until(deadline: float) -> Iterator[None]:
    while time.monotonic() < deadline:
        yield
        time.sleep(0.02)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
