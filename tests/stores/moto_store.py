"""moto's S3 server in a thread of this process, with the times of multipart uploads made true."""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import moto.s3.models
import moto.s3.responses
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.exceptions import NoSuchUpload
from moto.s3.models import FakeBucket, FakeKey, FakeMultipart, S3Backend
from moto.server import ThreadedMotoServer

from tests.stores.servers import Store

_UPLOAD: Final = re.compile(r"(<UploadId>([^<]*)</UploadId>.*?<Initiated>)[^<]*", re.DOTALL)


class MotoStore(Store):
    """moto keeps everything in this process, so its objects' ages can be changed where they are."""

    kind = "moto"

    def __init__(self) -> None:
        super().__init__()
        _mend()
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def age(self, bucket: str, seconds: float) -> None:
        earlier = timedelta(seconds=seconds)
        held = _bucket(bucket)
        for key in held.keys.values():
            key.last_modified -= earlier
        for multipart in held.multiparts.values():
            assert isinstance(multipart, _Multipart)
            multipart.initiated -= earlier
            for part in multipart.parts.values():
                part.last_modified -= earlier

    def drop_bucket(self, bucket: str) -> None:
        held = _bucket(bucket)
        for multipart in list(held.multiparts.values()):
            multipart.dispose()
        for key in list(held.keys.values()):
            key.dispose()
        held.keys.clear()
        moto.s3.models.s3_backends[DEFAULT_ACCOUNT_ID]["aws"].delete_bucket(bucket)

    def close(self) -> None:
        self._server.stop()


class _Multipart(FakeMultipart):
    """Knows when it began."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initiated = datetime.now(UTC)


def _bucket(name: str) -> FakeBucket:
    found = moto.s3.models.s3_backends[DEFAULT_ACCOUNT_ID]["aws"].get_bucket(name)
    assert isinstance(found, FakeBucket)
    return found


def _mend() -> None:
    """moto does three things as other stores do them.

    1. The listing of multipart uploads tells when they began; moto says 2010, so each would look abandoned.
    2. A part for a multipart upload that is gone, and its completion, is a NoSuchUpload; moto's KeyError
       becomes a 500.
    3. An object that was replaced is dropped in silence; moto's ResourceWarning would be an error in
       whatever test runs then.
    """
    if moto.s3.models.FakeMultipart is _Multipart:
        return
    listed, put = moto.s3.responses.S3Response.list_multipart_uploads, S3Backend.upload_part
    complete = S3Backend.complete_multipart_upload

    def list_multipart_uploads(response: Any) -> Any:
        status, headers, body = listed(response)
        assert isinstance(body, str)
        uploads = _bucket(response.bucket_name).multiparts

        def dated(entry: re.Match[str]) -> str:
            upload = uploads[entry[2]]
            assert isinstance(upload, _Multipart)
            return f"{entry[1]}{upload.initiated:%Y-%m-%dT%H:%M:%S.000Z}"

        return status, headers, _UPLOAD.sub(dated, body)

    def upload_part(backend: S3Backend, bucket_name: str, multipart_id: str, part_id: int, value: bytes) -> FakeKey:
        if multipart_id not in backend.get_bucket(bucket_name).multiparts:
            raise NoSuchUpload(upload_id=multipart_id)
        return put(backend, bucket_name, multipart_id, part_id, value)

    def complete_multipart_upload(backend: S3Backend, bucket_name: str, multipart_id: str, body: Any) -> FakeKey | None:
        if multipart_id not in backend.get_bucket(bucket_name).multiparts:
            raise NoSuchUpload(upload_id=multipart_id)
        return complete(backend, bucket_name, multipart_id, body)

    setattr(moto.s3.models, "FakeMultipart", _Multipart)  # noqa: B010
    setattr(moto.s3.responses.S3Response, "list_multipart_uploads", list_multipart_uploads)  # noqa: B010
    setattr(S3Backend, "upload_part", upload_part)  # noqa: B010
    setattr(S3Backend, "complete_multipart_upload", complete_multipart_upload)  # noqa: B010
    setattr(FakeKey, "__del__", FakeKey.dispose)  # noqa: B010
