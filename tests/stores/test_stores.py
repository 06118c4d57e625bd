"""The stores and the faulty proxy do what they say; what other tests conclude rests on it."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, HTTPClientError

from tests.stores.faults import (
    after,
    before,
    cut_reply,
    cut_request,
    damage,
    delay,
    error,
    hang,
    hold,
    lose_reply,
    slow_down,
    status,
)

MIB = 1024 * 1024
#: what a client sees of a reset, wherever it comes
RESET = (ConnectionClosedError, HTTPClientError)


def code(caught: pytest.ExceptionInfo[ClientError]) -> tuple[int, str]:
    answer = caught.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


def in_thread(call) -> threading.Thread:
    """The call runs beside the test and its error is nobody's."""

    def run() -> None:
        try:
            call()
        except (*RESET, ClientError):
            return

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_store_keeps_what_it_was_given(any_store, bucket):
    """An object and a multipart upload are listed, and the object can be read."""
    client = any_store.client()
    client.put_object(Bucket=bucket, Key="a/b", Body=b"abc")
    upload = client.create_multipart_upload(Bucket=bucket, Key="a/c")["UploadId"]
    assert any_store.objects(bucket) == {"a/b": 3}
    assert any_store.objects(bucket, "b") == {}
    assert any_store.multiparts(bucket) == [("a/c", upload)]
    assert client.get_object(Bucket=bucket, Key="a/b")["Body"].read() == b"abc"


def test_a_part_for_nothing_is_refused(any_store, bucket):
    """A part for a multipart upload that was aborted is a NoSuchUpload."""
    client = any_store.client()
    upload = client.create_multipart_upload(Bucket=bucket, Key="a")["UploadId"]
    client.abort_multipart_upload(Bucket=bucket, Key="a", UploadId=upload)
    with pytest.raises(ClientError) as caught:
        client.upload_part(Bucket=bucket, Key="a", UploadId=upload, PartNumber=1, Body=b"x")
    assert code(caught) == (404, "NoSuchUpload")


def test_aged_things_are_older(any_store, bucket):
    """After `age` objects and multipart uploads were last changed an hour ago, and new ones were not."""
    client = any_store.client()
    client.put_object(Bucket=bucket, Key="old", Body=b"abc")
    client.create_multipart_upload(Bucket=bucket, Key="old")
    any_store.age(bucket, 3600)
    client.put_object(Bucket=bucket, Key="new", Body=b"abc")
    client.create_multipart_upload(Bucket=bucket, Key="new")
    now = datetime.now(UTC)
    objects = client.list_objects_v2(Bucket=bucket)["Contents"]
    uploads = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    ages = {entry["Key"]: now - entry["LastModified"] for entry in objects}
    begun = {entry["Key"]: now - entry["Initiated"] for entry in uploads}
    for seen in (ages, begun):
        assert timedelta(hours=1) <= seen["old"] < timedelta(hours=1, minutes=1)
        assert seen["new"] < timedelta(minutes=1)


def test_a_dropped_bucket_is_gone(any_store):
    """A bucket with an object, a multipart upload and a part in it is gone after `drop_bucket`."""
    bucket, client = any_store.make_bucket(), any_store.client()
    client.put_object(Bucket=bucket, Key="a", Body=b"abc")
    upload = client.create_multipart_upload(Bucket=bucket, Key="b")["UploadId"]
    client.upload_part(Bucket=bucket, Key="b", UploadId=upload, PartNumber=1, Body=b"abc")
    any_store.drop_bucket(bucket)
    assert bucket not in [entry["Name"] for entry in client.list_buckets()["Buckets"]]


def test_everything_passes_without_faults(any_store, bucket, faulty):
    """A multipart upload, its listing, a ranged read and deletions pass, each told apart and counted."""
    client = faulty.client()
    upload = client.create_multipart_upload(Bucket=bucket, Key="a b/ü")["UploadId"]
    named = {"Bucket": bucket, "Key": "a b/ü", "UploadId": upload}
    tags = [
        client.upload_part(**named, PartNumber=number, Body=body)["ETag"]
        for number, body in ((1, b"x" * 5 * MIB), (2, b"end"))
    ]
    client.list_parts(**named)
    client.list_multipart_uploads(Bucket=bucket, Prefix="a")
    parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
    client.complete_multipart_upload(**named, MultipartUpload={"Parts": parts})
    assert client.get_object(Bucket=bucket, Key="a b/ü", Range=f"bytes={5 * MIB - 1}-")["Body"].read() == b"xend"
    client.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "a b/ü"})
    client.head_object(Bucket=bucket, Key="copy")
    client.head_bucket(Bucket=bucket)
    client.list_objects_v2(Bucket=bucket, Prefix="c")
    client.delete_object(Bucket=bucket, Key="copy")
    client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a b/ü"}]})
    with pytest.raises(ClientError):
        client.abort_multipart_upload(**named | {"UploadId": "nothing"})
    client.list_buckets()
    assert [call.kind for call in faulty.calls] == [
        "create_multipart_upload",
        "upload_part",
        "upload_part",
        "list_parts",
        "list_multipart_uploads",
        "complete_multipart_upload",
        "get_object",
        "copy_object",
        "head_object",
        "head_bucket",
        "list_objects",
        "delete_object",
        "delete_objects",
        "abort_multipart_upload",
        "other",
    ]
    assert any_store.objects(bucket) == {}


def test_a_call_is_described(bucket, faulty):
    """A call tells its key, part, upload, range, bytes and status."""
    client = faulty.client()
    upload = client.create_multipart_upload(Bucket=bucket, Key="a/ü")["UploadId"]
    client.upload_part(Bucket=bucket, Key="a/ü", UploadId=upload, PartNumber=7, Body=b"x" * 1000)
    with pytest.raises(ClientError):
        client.get_object(Bucket=bucket, Key="none", Range="bytes=1-2")
    made, part, got = faulty.calls
    assert (made.key, made.upload_id, made.status) == ("a/ü", upload, 200)
    assert (part.part_number, part.upload_id, part.bytes_sent, part.status) == (7, upload, 1000, 200)
    assert (got.key, got.range, got.status) == ("none", "bytes=1-2", 404)


def test_the_nth_calls_go_wrong(bucket, faulty):
    """A rule takes as many calls as it says, from the one it says, of the part it says."""
    client = faulty.client()
    upload = client.create_multipart_upload(Bucket=bucket, Key="a")["UploadId"]
    faulty.fault("upload_part", part_number=2, nth=2, times=2, what=status(500))
    seen = []
    for number in (1, 2, 1, 2, 1, 2, 2):
        try:
            client.upload_part(Bucket=bucket, Key="a", UploadId=upload, PartNumber=number, Body=b"x")
        except ClientError:
            seen.append((number, "failed"))
        else:
            seen.append((number, "done"))
    assert seen == [
        (1, "done"),
        (2, "done"),
        (1, "done"),
        (2, "failed"),
        (1, "done"),
        (2, "failed"),
        (2, "done"),
    ]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (status(500), (500, "500")),
        (slow_down(3), (503, "SlowDown")),
        (error("AccessDenied", 403), (403, "AccessDenied")),
    ],
    ids=["status", "slow_down", "error"],
)
def test_an_answer_in_the_stores_place(store, bucket, faulty, fault, expected):
    """The client gets the error, the store nothing, and the connection can be used again."""
    client = faulty.client()
    faulty.fault("put_object", what=fault)
    with pytest.raises(ClientError) as caught:
        client.put_object(Bucket=bucket, Key="a", Body=b"x" * MIB)
    assert code(caught) == expected
    assert store.objects(bucket) == {}
    client.put_object(Bucket=bucket, Key="a", Body=b"x")


def test_slow_down_can_say_when_to_come_back(bucket, faulty):
    """`slow_down(3)` has a Retry-After of 3."""
    faulty.fault("head_bucket", what=slow_down(3))
    with pytest.raises(ClientError) as caught:
        faulty.client().head_bucket(Bucket=bucket)
    assert caught.value.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "3"


def test_a_cut_request_does_not_count(store, bucket, faulty):
    """A put cut in its body is a reset to the client and no object in the store."""
    faulty.fault("put_object", what=cut_request(MIB))
    with pytest.raises(RESET):
        faulty.client().put_object(Bucket=bucket, Key="a", Body=b"x" * 4 * MIB)
    assert faulty.calls[0].status is None
    assert MIB <= faulty.calls[0].bytes_sent < 4 * MIB
    assert store.objects(bucket) == {}


def test_a_lost_reply_has_happened(store, bucket, faulty):
    """A put whose reply is lost is a reset to the client and an object in the store."""
    faulty.fault("put_object", what=lose_reply())
    with pytest.raises(RESET):
        faulty.client().put_object(Bucket=bucket, Key="a", Body=b"abc")
    assert store.objects(bucket) == {"a": 3}


def test_a_cut_reply_ends_short(bucket, faulty):
    """A read whose reply is cut gives fewer bytes than it announced."""
    client = faulty.client()
    client.put_object(Bucket=bucket, Key="a", Body=b"x" * MIB)
    faulty.fault("get_object", what=cut_reply(1000))
    with pytest.raises(Exception, match=r"IncompleteRead|[Cc]onnection|reset"):
        client.get_object(Bucket=bucket, Key="a")["Body"].read()


def test_a_damaged_body_is_refused(store, bucket, faulty):
    """A signed body in which one bit is flipped on the way is no object in the store."""
    faulty.fault("put_object", what=damage(at=1000))
    if store.kind == "moto":
        pytest.skip("moto looks at no signature")
    with pytest.raises(ClientError):
        faulty.client().put_object(Bucket=bucket, Key="a", Body=b"x" * 5000)
    assert store.objects(bucket) == {}


def test_a_held_call_waits(store, bucket, faulty):
    """A held put has not reached the store until it is released, and then it has."""
    held = hold()
    faulty.fault("put_object", what=held)
    thread = in_thread(lambda: faulty.client().put_object(Bucket=bucket, Key="a", Body=b"abc"))
    held.caught()
    assert store.objects(bucket) == {}
    held.release()
    thread.join()
    assert store.objects(bucket) == {"a": 3}


def test_a_held_reply_waits(store, bucket, faulty):
    """A put whose reply is held is in the store, and not answered until it is released."""
    held = hold("answered")
    faulty.fault("put_object", what=held)
    thread = in_thread(lambda: faulty.client().put_object(Bucket=bucket, Key="a", Body=b"abc"))
    held.caught()
    assert store.objects(bucket) == {"a": 3}
    assert faulty.calls[0].status is None
    held.release()
    thread.join()
    assert faulty.wait_for("put_object", over=True).status == 200


def test_a_hanging_call_never_reaches_the_store(store, bucket, faulty):
    """A put that hangs is taken whole, ends in a reset on release, and is not in the store."""
    hanging = hang()
    faulty.fault("put_object", what=hanging)
    thread = in_thread(lambda: faulty.client().put_object(Bucket=bucket, Key="a", Body=b"abc"))
    hanging.caught()
    hanging.release()
    thread.join()
    call = faulty.wait_for("put_object", over=True)
    assert (call.bytes_sent, call.status) == (3, None)
    assert store.objects(bucket) == {}


def test_a_delayed_call_is_late(bucket, faulty):
    """A call delayed by 50 ms takes at least as long."""
    faulty.fault("head_bucket", what=delay(0.05))
    begun = time.monotonic()
    faulty.client().head_bucket(Bucket=bucket)
    assert time.monotonic() - begun >= 0.05


def test_callbacks_stand_before_and_after_the_store(store, bucket, faulty):
    """`before` sees a store without the object, `after` one with it, and both see the call."""
    seen = []
    faulty.fault("put_object", key="a", what=before(lambda call: seen.append((call.key, store.objects(bucket)))))
    faulty.fault("put_object", key="b", what=after(lambda call: seen.append((call.key, store.objects(bucket)))))
    client = faulty.client()
    client.put_object(Bucket=bucket, Key="a", Body=b"abc")
    client.put_object(Bucket=bucket, Key="b", Body=b"abc")
    assert seen == [("a", {}), ("b", {"a": 3, "b": 3})]


def test_nobody_waits_in_a_closed_proxy(bucket, faulty):
    """Closing ends a held call and a hanging one."""
    faulty.fault("head_bucket", what=hold())
    faulty.fault("put_object", what=hang())
    threads = [
        in_thread(lambda: faulty.client().head_bucket(Bucket=bucket)),
        in_thread(lambda: faulty.client().put_object(Bucket=bucket, Key="a", Body=b"abc")),
    ]
    faulty.wait_for("head_bucket")
    faulty.wait_for("put_object")
    faulty.close()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


@pytest.mark.parametrize(("how", "expected"), [("reset", RESET), ("503", ClientError)])
def test_a_store_that_is_down_comes_back(bucket, faulty, how, expected):
    """Down, every call fails; up again, the next one succeeds."""
    client = faulty.client()
    faulty.down = how
    with pytest.raises(expected):
        client.head_bucket(Bucket=bucket)
    faulty.down = None
    client.head_bucket(Bucket=bucket)


def test_waiting_has_an_end(faulty):
    """Waiting for what does not come raises TimeoutError."""
    with pytest.raises(TimeoutError):
        faulty.wait_for("put_object", timeout=0.01)


def test_a_store_may_refuse_checksum_fields(bucket, faulty):
    """With `refuse_checksum_headers` a put with a CRC32C is a 400, and one without is kept."""
    faulty.refuse_checksum_headers = True
    client = faulty.client()
    with pytest.raises(ClientError) as caught:
        client.put_object(Bucket=bucket, Key="a", Body=b"abc", ChecksumAlgorithm="CRC32")
    assert code(caught) == (400, "InvalidArgument")
    client.put_object(Bucket=bucket, Key="a", Body=b"abc")


def test_a_store_may_drop_checksum_fields(bucket, faulty):
    """With `drop_checksum_headers` a wrong checksum goes unnoticed and the answer has none, parts included."""
    faulty.drop_checksum_headers = True
    client = faulty.client()
    answer = client.put_object(Bucket=bucket, Key="a", Body=b"abc", ChecksumCRC32="AAAAAA==")
    assert "ChecksumCRC32" not in answer
    upload = client.create_multipart_upload(Bucket=bucket, Key="b", ChecksumAlgorithm="CRC32")["UploadId"]
    named = {"Bucket": bucket, "Key": "b", "UploadId": upload}
    tag = client.upload_part(**named, PartNumber=1, Body=b"abc", ChecksumCRC32="AAAAAA==")["ETag"]
    part = {"PartNumber": 1, "ETag": tag, "ChecksumCRC32": "AAAAAA=="}
    client.complete_multipart_upload(**named, MultipartUpload={"Parts": [part]})


@pytest.mark.parametrize(
    ("sizes", "completes"),
    [((5, 5, 1), True), ((5, 5), True), ((5, 6), False), ((6, 5, 1), False)],
    ids=str,
)
def test_a_store_may_want_equal_parts(store, bucket, faulty, sizes, completes):
    """With `equal_parts` only parts of one size and a last one that is no larger become an object."""
    faulty.equal_parts = True
    client = store.client()
    upload = client.create_multipart_upload(Bucket=bucket, Key="a")["UploadId"]
    named = {"Bucket": bucket, "Key": "a", "UploadId": upload}
    parts = [
        {
            "PartNumber": number,
            "ETag": client.upload_part(**named, PartNumber=number, Body=bytes(size * MIB))["ETag"],
        }
        for number, size in enumerate(sizes, 1)
    ]
    if not completes:
        with pytest.raises(ClientError) as caught:
            faulty.client().complete_multipart_upload(**named, MultipartUpload={"Parts": parts})
        assert code(caught) == (400, "InvalidPart")
        return
    faulty.client().complete_multipart_upload(**named, MultipartUpload={"Parts": parts})
    assert store.objects(bucket) == {"a": sum(sizes) * MIB}


def test_a_store_may_list_no_multipart_uploads(bucket, faulty):
    """With `no_list_multiparts` the listing is a 501 NotImplemented."""
    faulty.no_list_multiparts = True
    with pytest.raises(ClientError) as caught:
        faulty.client().list_multipart_uploads(Bucket=bucket)
    assert code(caught) == (501, "NotImplemented")
