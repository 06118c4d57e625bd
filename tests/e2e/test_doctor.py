"""`attachd doctor`: what it says of a good configuration, and of each way in which one can be wrong."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError
from click.testing import CliRunner

from service.cli import cli
from service.storage.s3 import doctor
from service.storage.s3.client import make_client
from tests.conftest import require
from tests.e2e.process import ROOT, ServiceProcess
from tests.ports import free_port
from tests.scanners.double import Double
from tests.stores.fixtures import missing
from tests.stores.servers import Store

S3_CHECKS = [
    "bucket", "clock", "put", "get", "range", "checksum", "multipart", "copy", "abort", "list", "list-multiparts",
    "presign", "delete", "abort-rule", "latency",
]  # fmt: skip
LOCAL_CHECKS = [
    "settings", "keys", "database", "data directory", "machine clock", "descriptors", "memory", "shared memory",
]  # fmt: skip

Doctor = Callable[..., tuple[int, dict[str, str]]]


@pytest.fixture
def moto_bucket(moto_store: Store) -> Iterator[str]:
    """A bucket that a check may not leave anything in."""
    name = moto_store.make_bucket()
    yield name
    assert (moto_store.objects(name), moto_store.multiparts(name)) == ({}, [])
    moto_store.drop_bucket(name)


def lines(output: str) -> dict[str, str]:
    """What is said of each check, by its name: the names are padded to one width."""
    width = max(map(len, S3_CHECKS + LOCAL_CHECKS))
    return {line[:width].strip(): line[width:].strip() for line in output.splitlines()}


def local(tmp_path: Path, **settings: str) -> dict[str, str | None]:
    """The environment of a command on a directory of its own; nothing that this machine sets is in it."""
    clean: dict[str, str | None] = dict.fromkeys(name for name in os.environ if name.startswith(("ATTACHD_", "AWS_")))
    return clean | {"ATTACHD_DATA": str(tmp_path / "data")} | settings


def run(environment: dict[str, str | None]) -> tuple[int, dict[str, str]]:
    """The exit code and what is said."""
    result = CliRunner().invoke(cli, ["doctor"], env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, lines(result.output)


@pytest.fixture
def doctor_of(moto_store: Store, moto_bucket: str, tmp_path: Path) -> Doctor:
    """The command on moto's bucket, with settings on top."""

    def of(**settings: str) -> tuple[int, dict[str, str]]:
        s3 = {
            "ATTACHD_STORAGE": "s3",
            "ATTACHD_S3_BUCKET": moto_bucket,
            "ATTACHD_S3_ENDPOINT": moto_store.endpoint,
            "ATTACHD_S3_PREFIX": "chat/files",
        }
        return run(local(tmp_path, **(moto_store.environment() | s3 | settings)))

    return of


@pytest.fixture
def quirk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], None]:
    """The store answers an operation in a way of its own: with an error's code, or as the function says."""
    quirks: dict[str, Any] = {}

    def answer(model: Any, params: Any, **_: Any) -> Any:
        how = quirks[model.name]
        if callable(how):
            return how(params)
        status = {"SlowDown": 503, "NotImplemented": 501, "QuotaExceeded": 507}.get(how, 403)
        metadata = {"HTTPStatusCode": status, "HTTPHeaders": {}}
        return Http(status), {"Error": {"Code": how, "Message": how}, "ResponseMetadata": metadata}

    def make(*arguments: Any, **options: Any) -> Any:
        client = make_client(*arguments, **options)
        for name in quirks:
            client.meta.events.register(f"before-call.s3.{name}", answer)
        return client

    monkeypatch.setattr(doctor, "make_client", make)
    return quirks.__setitem__


class Http:
    """As much of an HTTP response as botocore looks at."""

    def __init__(self, status: int) -> None:
        self.status_code = status
        self.headers: dict[str, str] = {}


def test_all_is_well_on_disk(tmp_path: Path) -> None:
    """Before the first start nothing has failed, and nothing has been made."""
    code, said = run(local(tmp_path))
    assert (code, list(said)) == (0, LOCAL_CHECKS)
    assert [name for name in said if said[name].startswith("skipped")] == ["keys", "database"]
    assert list(tmp_path.iterdir()) == []


def test_all_is_well_with_s3(doctor_of: Doctor) -> None:
    """Each check has its line, all are ok, and the bucket is as empty as before."""
    code, said = doctor_of()
    assert (code, list(said)) == (0, LOCAL_CHECKS + S3_CHECKS)
    assert [said[name] for name in S3_CHECKS if not said[name].startswith("ok ")] == []


@pytest.mark.parametrize("limit", ["1MiB", "3MiB"])
async def test_a_scanner_is_tried(tmp_path: Path, limit: str) -> None:
    """It is ok if it takes as much as the setting says, and else both sides of the difference are named."""
    async with Double(most=2 * 2**20).serving() as clamd:
        environment = local(tmp_path, ATTACHD_CLAMD=clamd.address, ATTACHD_CLAMD_MAX_SIZE=limit)
        code, said = await asyncio.to_thread(run, environment)
    assert list(said) == [*LOCAL_CHECKS, "clamd"]
    assert "ClamAV 1.4.6" in said["clamd"]
    if limit == "1MiB":
        assert (code, said["clamd"].split()[0]) == (0, "ok")
    else:
        assert (code, said["clamd"].split()[0]) == (1, "FAILED")
        assert "ATTACHD_CLAMD_MAX_SIZE" in said["clamd"]
        assert "StreamMaxLength" in said["clamd"]


def test_a_scanner_that_is_away_is_named(tmp_path: Path) -> None:
    """Where it was looked for stands in its line."""
    code, said = run(local(tmp_path, ATTACHD_CLAMD=f"unix:{tmp_path}/clamd.ctl"))
    assert code == 1
    assert f"{tmp_path}/clamd.ctl" in said["clamd"]


@pytest.fixture
def versity_doctor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Doctor]:
    """The command on a bucket of versitygw, which checks signatures and checksums; nothing may be left in it."""
    if why := missing("versitygw"):
        require("s3", why=why)
    store: Store = request.getfixturevalue("store")
    bucket = store.make_bucket()

    def of(**settings: str) -> tuple[int, dict[str, str]]:
        s3 = {"ATTACHD_STORAGE": "s3", "ATTACHD_S3_BUCKET": bucket, "ATTACHD_S3_ENDPOINT": store.endpoint}
        return run(local(tmp_path, **(store.environment() | s3 | settings)))

    yield of
    assert (store.objects(bucket), store.multiparts(bucket)) == ({}, [])
    store.drop_bucket(bucket)


def test_all_is_well_with_versitygw(versity_doctor: Doctor) -> None:
    """A store that checks signatures, checksums and part sizes passes, and keeps nothing."""
    code, said = versity_doctor()
    assert code == 0
    assert [name for name in S3_CHECKS if not said[name].startswith("ok ")] == []
    assert "is checked" in said["checksum"]


def test_a_store_that_does_not_name_files_will_do(versity_doctor: Doctor) -> None:
    """A store without response-content-disposition sends what was stored with the file, so only names are lost."""
    code, said = versity_doctor(ATTACHD_DOWNLOAD_MODE="redirect")
    assert code == 0
    assert "files would be saved without their names and types" in said["presign"]
    assert said["presign"].endswith("leave ATTACHD_DOWNLOAD_MODE at proxy")


def test_a_store_that_lets_files_open_fails_for_redirects(versity_doctor: Doctor, quirk: Any) -> None:
    """G3: if it drops what was stored with the file as well, a page would open in the browser, which fails."""

    def dropped(params: Any) -> None:
        params["headers"].pop("Content-Disposition", None)

    quirk("PutObject", dropped)
    code, said = versity_doctor(ATTACHD_DOWNLOAD_MODE="redirect")
    assert code == 1
    assert said["presign"].startswith("FAILED")
    assert "would open in the browser" in said["presign"]


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "AWS_SECRET_ACCESS_KEY"),
        ("AWS_ACCESS_KEY_ID", "AKNOBODY", "AWS_ACCESS_KEY_ID"),
        ("ATTACHD_S3_REGION", "eu-central-1", "ATTACHD_S3_REGION"),
    ],
)
def test_what_a_signature_is_made_of_is_named_if_it_is_wrong(
    versity_doctor: Doctor, name: str, value: str, advice: str
) -> None:
    """A store that checks signatures refuses a wrong secret, key or region; the advice begins with that one."""
    code, said = versity_doctor(**{name: value})
    assert code == 1
    assert said["bucket"].startswith("FAILED")
    assert advice in said["bucket"].partition(" -> ")[2].partition(";")[0]
    assert list(said) == [*LOCAL_CHECKS, "bucket", "all others"]


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"ATTACHD_S3_BUCKET": "there-is-none"}, "create the bucket"),
        ({"ATTACHD_S3_ENDPOINT": f"http://127.0.0.1:{free_port()}"}, "ATTACHD_S3_ENDPOINT"),
        ({"ATTACHD_S3_ENDPOINT": "https://127.0.0.1:{port}"}, "https:// in ATTACHD_S3_ENDPOINT"),
        (
            {"ATTACHD_S3_ADDRESSING": "virtual", "ATTACHD_S3_ENDPOINT": "http://store.invalid"},
            "ATTACHD_S3_ADDRESSING=path",
        ),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "AWS_ACCESS_KEY_ID"),
        ({"AWS_PROFILE": "there-is-none"}, "AWS_PROFILE"),
    ],
)
def test_a_bucket_that_cannot_be_reached(
    doctor_of: Doctor, moto_store: Store, settings: dict[str, str], advice: str
) -> None:
    """The one failure says what to do, and one line that the other checks are skipped."""
    code, said = doctor_of(**{name: value.replace("{port}", str(moto_store.port)) for name, value in settings.items()})
    assert code == 1
    assert said["bucket"].startswith("FAILED")
    assert advice in said["bucket"]
    assert list(said) == [*LOCAL_CHECKS, "bucket", "all others"]
    assert said["all others"].startswith("skipped")


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        ("InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        ("ExpiredToken", "AWS_SESSION_TOKEN"),
        ("AuthorizationHeaderMalformed", "ATTACHD_S3_REGION"),
        ("PermanentRedirect", "ATTACHD_S3_REGION"),
        ("RequestTimeTooSkewed", "NTP"),
    ],
)
def test_a_store_that_refuses_everything(doctor_of: Doctor, quirk: Any, code: str, advice: str) -> None:
    """HEAD tells only a number, so the reason is asked for once more; the advice is for that reason."""
    quirk("HeadBucket", "400")
    quirk("ListObjectsV2", code)
    exit_code, said = doctor_of()
    assert exit_code == 1
    assert said["bucket"].startswith(f"FAILED   {code}")
    assert advice in said["bucket"].partition(" -> ")[2]
    assert list(said) == [*LOCAL_CHECKS, "bucket", "all others"]
    assert said["all others"].startswith("skipped")


@pytest.mark.parametrize(
    ("operation", "code", "check", "advice"),
    [
        ("PutObject", "AccessDenied", "put", "allow s3:PutObject"),
        ("GetObject", "AccessDenied", "get", "allow s3:GetObject"),
        ("PutObject", "QuotaExceeded", "put", "make room"),
        ("GetObject", "SlowDown", "range", "asks for patience"),
        ("CreateMultipartUpload", "AccessDenied", "multipart", "allow s3:PutObject"),
        ("UploadPartCopy", "NotImplemented", "copy", "another store"),
        ("ListObjectsV2", "AccessDenied", "list", "allow s3:ListBucket"),
        ("ListMultipartUploads", "AccessDenied", "list-multiparts", "allow s3:ListBucketMultipartUploads"),
        ("PutObject", "KMS.NotFoundException", "put", "kms:GenerateDataKey"),
        ("UploadPart", "StrangeFault", "multipart", "the store's documents"),
    ],
)
def test_a_right_that_is_missing_is_named(
    doctor_of: Doctor, quirk: Any, operation: str, code: str, check: str, advice: str
) -> None:
    """The check that needs it fails with the right's name or the way out, and hides no other check."""
    quirk(operation, code)
    exit_code, said = doctor_of()
    assert exit_code == 1
    assert said[check].startswith(f"FAILED   {code}")
    assert advice in said[check].partition(" -> ")[2]
    assert list(said) == LOCAL_CHECKS + S3_CHECKS
    assert said["bucket"].startswith("ok ")


def test_a_store_that_stops_answering_ends_it(doctor_of: Doctor, quirk: Any) -> None:
    """The first call that gets no answer is the last one that is waited for."""

    def silence(_: Any) -> Any:
        raise ReadTimeoutError(endpoint_url="http://store")

    quirk("GetObject", silence)
    code, said = doctor_of()
    assert code == 1
    assert list(said) == [*LOCAL_CHECKS, "bucket", "clock", "put", "get", "all others"]
    assert "ATTACHD_S3_ENDPOINT" in said["get"]


def test_a_bucket_that_may_not_be_listed_is_tried_all_the_same(doctor_of: Doctor, quirk: Any) -> None:
    """Without s3:ListBucket the bucket's own check fails, and what objects allow is still found out."""
    quirk("HeadBucket", "403")
    quirk("ListObjectsV2", "AccessDenied")
    code, said = doctor_of()
    assert code == 1
    assert [name for name in S3_CHECKS if said[name].startswith("FAILED")] == ["bucket", "list"]
    assert "allow s3:ListBucket" in said["bucket"]
    assert said["put"].startswith("ok ")


def test_what_cannot_be_removed_is_told(moto_store: Store, tmp_path: Path, quirk: Any) -> None:
    """Without the rights to delete and abort, the last line names what is left and where."""
    bucket = moto_store.make_bucket()
    quirk("DeleteObject", "AccessDenied")
    quirk("AbortMultipartUpload", "AccessDenied")
    s3 = {"ATTACHD_STORAGE": "s3", "ATTACHD_S3_BUCKET": bucket, "ATTACHD_S3_ENDPOINT": moto_store.endpoint}
    code, said = run(local(tmp_path, **moto_store.environment(), **s3))
    assert code == 1
    assert "allow s3:PutObject and s3:AbortMultipartUpload" in said["abort"]
    assert "allow s3:DeleteObject" in said["delete"]
    (base,) = {key.partition("/")[0] for key in moto_store.objects(bucket)}
    assert list(said)[-1] == "cleanup"
    assert f"remove what begins with {base}/" in said["cleanup"]
    moto_store.drop_bucket(bucket)


def test_nothing_is_left_of_what_was_refused(doctor_of: Doctor, quirk: Any) -> None:
    """Credentials that may only read fail where they write; that nothing can be removed then is no failure."""
    for operation in ("PutObject", "CreateMultipartUpload", "DeleteObject", "AbortMultipartUpload"):
        quirk(operation, "AccessDenied")
    code, said = doctor_of()
    assert code == 1
    assert said["put"].startswith("FAILED")
    assert "cleanup" not in said


@pytest.mark.parametrize(
    ("off_by", "start", "word"), [(0, "ok ", "less than"), (120, "warning ", "NTP"), (-600, "FAILED", "NTP")]
)
def test_clocks_that_differ(doctor_of: Doctor, quirk: Any, off_by: float, start: str, word: str) -> None:
    """More than a minute is worth a word, more than five fail."""
    headers = {"date": formatdate(time.time() + off_by, usegmt=True)}
    quirk("HeadBucket", lambda _: (Http(200), {"ResponseMetadata": {"HTTPHeaders": headers, "HTTPStatusCode": 200}}))
    code, said = doctor_of()
    assert code == (1 if start == "FAILED" else 0)
    assert said["clock"].startswith(start)
    assert word in said["clock"]


def test_a_store_that_ignores_ranges(doctor_of: Doctor, quirk: Any) -> None:
    """An answer of 200 to a Range fails that check, whatever its bytes are."""

    def whole(params: Any) -> Any:
        params["headers"].pop("Range", None)

    quirk("GetObject", whole)
    code, said = doctor_of()
    assert code == 1
    assert said["range"].startswith("FAILED   bytes 5 to 9 were asked for; 200")
    assert said["get"].startswith("ok ")


def test_a_store_that_refuses_checksums_will_do(doctor_of: Doctor, quirk: Any) -> None:
    """K3: attachd does without checksum headers, so this is a note and no failure."""

    def refused(params: Any) -> Any:
        if any(name.lower() == "x-amz-checksum-crc32c" for name in params["headers"]):
            metadata = {"HTTPStatusCode": 400, "HTTPHeaders": {}}
            return Http(400), {"Error": {"Code": "InvalidArgument"}, "ResponseMetadata": metadata}
        return None

    quirk("PutObject", refused)
    code, said = doctor_of()
    assert code == 0
    assert "a right CRC-32C is refused (InvalidArgument); attachd sends none" in said["checksum"]


@pytest.mark.parametrize(("mode", "start", "code"), [("redirect", "FAILED", 1), ("proxy", "skipped", 0)])
def test_presigned_urls_matter_for_redirects_only(doctor_of: Doctor, mode: str, start: str, code: int) -> None:
    """An address that clients cannot reach fails where they would be sent there, and nowhere else."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    exit_code, said = doctor_of(ATTACHD_DOWNLOAD_MODE=mode, ATTACHD_S3_PUBLIC_ENDPOINT=nowhere)
    assert exit_code == code
    assert said["presign"].startswith(start)
    assert "ATTACHD_S3_PUBLIC_ENDPOINT" in said["presign"]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"Filter": {"Prefix": ""}, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2}}, "after 2 d"),
        ({"Filter": {"Prefix": "chat/"}, "Expiration": {"Days": 30}}, "files would be lost"),
        ({"Filter": {"Prefix": "other/"}, "Expiration": {"Days": 30}}, "no rule"),
        ({"Filter": {"Prefix": ""}, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 9}}, "no rule"),
    ],
)
def test_a_rule_of_the_bucket_that_is_in_the_way(
    doctor_of: Doctor, moto_store: Store, moto_bucket: str, rule: dict[str, Any], words: str
) -> None:
    """A rule that aborts uploads too soon, or deletes files below the prefix, is told; others are not."""
    rules: Any = {"Rules": [rule | {"ID": "r", "Status": "Enabled"}]}
    moto_store.client().put_bucket_lifecycle_configuration(Bucket=moto_bucket, LifecycleConfiguration=rules)
    code, said = doctor_of()
    assert code == 0
    assert words in said["abort-rule"]


def test_a_rule_that_may_not_be_read_is_skipped(doctor_of: Doctor, quirk: Any) -> None:
    """attachd needs no right to read the bucket's rules."""
    quirk("GetBucketLifecycleConfiguration", "AccessDenied")
    code, said = doctor_of()
    assert code == 0
    assert said["abort-rule"].startswith("skipped")
    assert "s3:GetLifecycleConfiguration" in said["abort-rule"]


def test_an_interrupt_leaves_nothing(doctor_of: Doctor, moto_store: Store, moto_bucket: str, quirk: Any) -> None:
    """Ctrl-C in the middle of a multipart upload removes what was made before it."""

    def interrupt(_: Any) -> Any:
        assert moto_store.objects(moto_bucket)
        assert moto_store.multiparts(moto_bucket)
        raise KeyboardInterrupt

    quirk("UploadPartCopy", interrupt)
    code, said = doctor_of()
    assert code == 1
    assert "abort" not in said
    assert (moto_store.objects(moto_bucket), moto_store.multiparts(moto_bucket)) == ({}, [])


def test_it_may_be_run_beside_the_service(tmp_path: Path) -> None:
    """While a service uses the directory doctor finds all well, and the service goes on."""
    with ServiceProcess(tmp_path) as service:
        command = [sys.executable, "-m", "service", "doctor"]
        said = subprocess.run(
            command, cwd=ROOT, env=service.environment, capture_output=True, text=True, timeout=30, check=False
        )
        assert said.returncode == 0, said.stdout + said.stderr
        assert all(line.startswith("ok ") for line in lines(said.stdout).values())
        request = urllib.request.Request(service.mint_upload(), method="PUT", data=b"hello")
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.load(answer)["state"] == "ready"


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("revision", "setting", "code", "word"),
    [
        ("0000", None, 0, "next start"),
        ("0000", "sqlite:///{path}", 1, "attachd migrate"),
        ("9999", None, 1, "newer version"),
    ],
)
def test_a_database_of_another_version_is_left_as_it_is(
    tmp_path: Path, revision: str, setting: str | None, code: int, word: str
) -> None:
    """An older or newer schema is told with what will or must be done, and not one byte changes."""
    path = tmp_path / "data" / "attachd.db"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
        database.commit()
    before = snapshot(path.parent)
    more = {} if setting is None else {"ATTACHD_DATABASE": setting.format(path=path)}
    exit_code, said = run(local(tmp_path, **more))
    assert exit_code == code
    assert word in said["database"]
    assert snapshot(path.parent) == before


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    """The check fails with SQLite's word and the setting, and those after it are made."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "attachd.db").write_text("no database\n" * 100)
    code, said = run(local(tmp_path))
    assert code == 1
    assert said["database"].startswith("FAILED")
    assert "ATTACHD_DATABASE" in said["database"]
    assert said["data directory"].startswith("ok ")


def test_keys_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    """A key set that is named and missing, and one that everybody can read, both fail with what to do."""
    path = tmp_path / "keys.json"
    code, said = run(local(tmp_path, ATTACHD_KEYS=str(path)))
    assert (code, said["keys"].partition(" ")[0]) == (1, "FAILED")
    assert "attachd keys new" in said["keys"]
    assert CliRunner().invoke(cli, ["keys", "new"], env=local(tmp_path, ATTACHD_KEYS=str(path))).exit_code == 0
    path.chmod(0o644)
    code, said = run(local(tmp_path, ATTACHD_KEYS=str(path)))
    assert code == 1
    assert said["keys"].endswith(f"-> chmod 600 {path}")


def test_a_data_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """A file in its place fails the check with the setting's name."""
    (tmp_path / "data").write_text("a file")
    code, said = run(local(tmp_path))
    assert code == 1
    assert said["data directory"].startswith("FAILED")
    assert "ATTACHD_DATA" in said["data directory"]


def test_a_clock_that_was_set_back_is_told(tmp_path: Path) -> None:
    """A clock that is behind what attachd wrote last would bring ended links back, so that fails."""
    keys = tmp_path / "keys.json"
    environment = local(tmp_path, ATTACHD_KEYS=str(keys))
    assert CliRunner().invoke(cli, ["keys", "new"], env=environment).exit_code == 0
    os.utime(keys, (time.time() + 3600,) * 2)
    code, said = run(environment)
    assert code == 1
    assert said["machine clock"].startswith("FAILED")
    assert said["machine clock"].endswith("-> set it by NTP")
