"""boto3 and nothing else: `python -m tests.bench.bare PORT DIRECTORY DURABILITY ENDPOINT REGION BUCKET`.

What uploads to a bucket and downloads from it cost at least: a file from the page cache leaves in
attachd's parts, as many at once and by the same kind of client, each with its CRC-32C; and it is
fetched by attachd's ranges, of which nothing is done with the bytes. No server, no other hashes,
no database. It is told what to do in lines, each answered with "done":

    put PATH SIZE AT_ONCE    that much of the file is an object
    get SIZE                 the object of the last put is read
"""

from __future__ import annotations

import os
import socket
import sys
from base64 import b64encode
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import google_crc32c

from service.allocator import suit_large_buffers
from service.storage.s3.client import S3Options, make_client

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PART_BYTES: Final = 8 << 20
RANGE_BYTES: Final = 4 << 20
#: ranges under way: the one that is read, and the next
AHEAD: Final = 2
KEY: Final = "file"


class Bare:
    """One file at a time."""

    def __init__(self, client: S3Client, bucket: str) -> None:
        self._client = client
        self._bucket = bucket
        self._threads = ThreadPoolExecutor(16)

    def put(self, path: str, size: int, at_once: int) -> None:
        """The first bytes of the file are the object."""
        fd = os.open(path, os.O_RDONLY)
        try:
            if size <= PART_BYTES:
                body = os.pread(fd, size, 0)
                self._client.put_object(Bucket=self._bucket, Key=KEY, Body=body, **_crc(body))
                return
            made = self._client.create_multipart_upload(Bucket=self._bucket, Key=KEY, ChecksumAlgorithm="CRC32C")

            def send(start: int) -> Any:
                body = os.pread(fd, min(PART_BYTES, size - start), start)
                number, crc = start // PART_BYTES + 1, _crc(body)
                sent = self._client.upload_part(
                    Bucket=self._bucket, Key=KEY, UploadId=made["UploadId"], PartNumber=number, Body=body, **crc
                )
                return {"PartNumber": number, "ETag": sent["ETag"], **crc}

            with ThreadPoolExecutor(at_once) as threads:
                parts = list(threads.map(send, range(0, size, PART_BYTES)))
            self._client.complete_multipart_upload(
                Bucket=self._bucket, Key=KEY, UploadId=made["UploadId"], MultipartUpload={"Parts": parts}
            )
        finally:
            os.close(fd)

    def get(self, size: int) -> None:
        """All bytes of the object have been here."""

        def fetch(start: int) -> int:
            end = min(start + RANGE_BYTES, size)
            found = self._client.get_object(Bucket=self._bucket, Key=KEY, Range=f"bytes={start}-{end - 1}")
            with found["Body"] as body:
                return len(body.read())

        came = 0
        under_way: deque[Future[int]] = deque()
        for start in range(0, size, RANGE_BYTES):
            under_way.append(self._threads.submit(fetch, start))
            if len(under_way) == AHEAD:
                came += under_way.popleft().result()
        came += sum(fetched.result() for fetched in under_way)
        assert came == size, f"{came} bytes of {size}"


def _crc(body: bytes) -> Any:
    return {"ChecksumCRC32C": b64encode(google_crc32c.value(body).to_bytes(4, "big")).decode()}


def main() -> None:
    port, _, _, endpoint, region, bucket = sys.argv[1:]
    suit_large_buffers()
    options = S3Options(bucket, endpoint=endpoint, region=region, addressing="path")
    bare = Bare(make_client(options, sign_bodies=False), bucket)
    with socket.create_server(("127.0.0.1", int(port))) as listener:
        while True:
            peer, _ = listener.accept()
            with peer, peer.makefile() as lines:
                match lines.readline().split():
                    case ["put", path, size, at_once]:
                        bare.put(path, int(size), int(at_once))
                    case ["get", size]:
                        bare.get(int(size))
                    case _:
                        # whoever only looked whether somebody listens
                        continue
                peer.sendall(b"done\n")


if __name__ == "__main__":
    main()
