"""Metrics: the names that dashboards rely on, and label sets that nobody can make grow."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncGenerator
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from service.keyset import KeyState
from service.metadata.base import Totals
from service.metrics import MOST_ROUTES, Metrics, Summed, forget_gauges, reserve
from service.model import Protocol, UploadId
from service.storage.base import Receipt, Storage, StorageFull, StorageShort
from service.storage.wrappers import MeteredStorage

#: contract, section 10: what applies to one process with local storage, and each metric's labels
CONTRACT = {
    "attachd_upload_bytes_received_total": {"protocol"},
    "attachd_upload_bytes_committed_total": {"protocol"},
    "attachd_download_bytes_sent_total": {"mode"},
    "attachd_transfer_throughput_bytes_per_second": {"direction"},
    "attachd_transfer_duration_seconds": {"direction", "outcome"},
    "attachd_transfers_in_flight": {"direction"},
    "attachd_uploads_created_total": {"protocol"},
    "attachd_uploads_finished_total": {"protocol"},
    "attachd_uploads_failed_total": {"protocol", "reason"},
    "attachd_uploads_resumed_total": {"after"},
    "attachd_upload_size_bytes": set(),
    "attachd_upload_elapsed_seconds": {"size_class"},
    "attachd_uploads_open": set(),
    "attachd_files": set(),
    "attachd_stored_bytes": set(),
    "attachd_http_requests_total": {"route", "method", "code"},
    "attachd_http_request_duration_seconds": {"route", "method"},
    "attachd_checksum_verifications_total": {"algorithm", "result"},
    "attachd_hashed_bytes_total": {"algorithm"},
    "attachd_storage_requests_total": {"backend", "operation", "outcome"},
    "attachd_storage_request_duration_seconds": {"backend", "operation", "outcome"},
    "attachd_storage_free_bytes": {"backend"},
    "attachd_buffer_bytes": set(),
    "attachd_buffer_limit_bytes": set(),
    "attachd_event_loop_lag_seconds": set(),
    "attachd_lock_takeovers_total": set(),
    "attachd_lock_wait_seconds": set(),
    "attachd_token_verifications_total": {"result"},
    "attachd_key_tokens_total": {"kid"},
    "attachd_keys": {"kid", "state"},
    "attachd_gc_reclaimed_bytes_total": set(),
    "attachd_gc_last_success_timestamp_seconds": set(),
    "attachd_multipart_orphans": set(),
    "attachd_scans_total": {"verdict"},
    "attachd_scan_duration_seconds": set(),
    "attachd_outbox_pending": {"endpoint"},
    "attachd_outbox_oldest_seconds": {"endpoint"},
    "attachd_webhook_deliveries_total": {"endpoint", "result"},
    "attachd_draining": set(),
    "attachd_build_info": {"version"},
}


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every series of a scrape with its value."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def used() -> Metrics:
    """Metrics in which everything happened once."""
    metrics = Metrics("1.2.3")
    metrics.http_request("/files", "POST", 201, 0.1)
    metrics.token_verified("ok", kid="k1")
    metrics.storage_request("filesystem", "write", "ok", 0.1)
    metrics.keys({"k1": KeyState.ACTIVE})
    metrics.storage_free("filesystem", 1)
    metrics.expect_endpoints(["chat"])
    metrics.outbox("chat", 1, 0.5)
    metrics.webhook_delivered("chat", "ok")
    return metrics


@pytest.mark.parametrize("name", CONTRACT)
def test_the_metric_has_the_name_and_labels_of_the_contract(name):
    """A scrape has the metric, with exactly its labels."""
    found = [
        {label for label, _ in labels} - {"le"}
        for sample, labels in samples(used())
        if re.sub(r"_(?:bucket|sum|count)$", "", sample) == name
    ]
    assert found
    assert all(labels == CONTRACT[name] for labels in found)


def test_nothing_but_the_contract_is_exposed():
    """No metric goes by a name that the contract does not have, and none comes with a `_created` twin."""
    names = {re.sub(r"_(?:bucket|sum|count)$", "", name) for name, _ in samples(used())}
    assert names == set(CONTRACT)


@settings(max_examples=25)  # each reads two whole scrapes
@given(
    method=st.text(),
    code=st.integers(-10, 10_000),
    word=st.text(),
    seconds=st.floats(0, 1e6),
    size=st.integers(0, 2**40),
)
def test_m1_no_client_can_add_a_series(method, code, word, seconds, size):
    """Whatever a client sends as method or checksum algorithm, closed sets stay closed."""
    metrics = Metrics("1")
    metrics.http_request(None, "PURGE", 200, 0)
    metrics.http_request(None, "PURGE", code, 0)
    metrics.checksum_verified("crc7", "mismatch")
    metrics.hashed("crc7", 1)
    before = set(samples(metrics))
    metrics.http_request(None, method if method not in {"GET", "PUT"} else "", code, seconds)
    metrics.upload_failed(Protocol.TUS, word)
    metrics.upload_finished(Protocol.PUT, size, seconds)
    metrics.upload_resumed(seconds)
    metrics.transfer_started("in")
    metrics.transfer_ended("in", "client_abort", size, seconds)
    assert set(samples(metrics)) == before


def test_m1_paths_passed_as_routes_cannot_grow_without_end():
    """After as many routes as there can be, further ones are counted as `other`."""
    metrics = Metrics("1")
    for number in range(MOST_ROUTES + 1000):
        metrics.http_request(f"/{number}", "GET", 200, 0)
    routes = {dict(labels)["route"] for name, labels in samples(metrics) if name == "attachd_http_requests_total"}
    assert len(routes) == MOST_ROUTES + 1
    assert "other" in routes


def test_closed_sets_are_there_before_anything_happened():
    """The first scrape has a zero for each protocol, so that the first event shows in a rate."""
    found = samples(Metrics("1"))
    for protocol in ("tus", "ietf", "put"):
        assert found[("attachd_uploads_created_total", frozenset({("protocol", protocol)}))] == 0


def test_small_transfers_do_not_count_as_throughput():
    """A transfer under 1 MiB has a duration and no throughput; one of 1 MiB has both."""
    metrics = Metrics("1")
    for size in (2**20 - 1, 2**20):
        metrics.transfer_started("out")
        metrics.transfer_ended("out", "ok", size, 2.0)
    found, out = samples(metrics), ("direction", "out")
    assert found[("attachd_transfer_throughput_bytes_per_second_count", frozenset({out}))] == 1
    assert found[("attachd_transfer_throughput_bytes_per_second_sum", frozenset({out}))] == 2**19
    assert found[("attachd_transfer_duration_seconds_count", frozenset({out, ("outcome", "ok")}))] == 2
    assert found[("attachd_transfers_in_flight", frozenset({out}))] == 0


def test_gauges_show_what_was_counted_in_the_store():
    """The gauges are the store's totals, whatever they were before."""
    metrics = Metrics("1")
    metrics.totals(Totals(uploads_open=9, files=9, file_bytes=9, stored_bytes=9))
    metrics.totals(Totals(uploads_open=2, files=3, file_bytes=2**32, stored_bytes=2**33))
    found = samples(metrics)
    assert [found[(f"attachd_{name}", frozenset())] for name in ("uploads_open", "files", "stored_bytes")] == [
        2,
        3,
        2**33,
    ]


def test_a_key_is_shown_in_the_state_that_it_is_in():
    """A key that is retired, or taken out of the set, is no longer shown as active."""
    metrics = Metrics("1")

    def shown() -> set[tuple[str, str]]:
        return {
            (dict(labels)["kid"], dict(labels)["state"])
            for (name, labels), value in samples(metrics).items()
            if name == "attachd_keys" and value == 1
        }

    metrics.keys({"k1": KeyState.ACTIVE, "k2": KeyState.VERIFY})
    assert shown() == {("k1", "active"), ("k2", "verify")}
    metrics.keys({"k1": KeyState.VERIFY, "k3": KeyState.ACTIVE})
    assert shown() == {("k1", "verify"), ("k3", "active")}


def test_the_orphan_gauge_is_what_the_last_pass_left():
    """The gauge shows the last count, not a sum."""
    metrics = Metrics("1")
    for count in (5, 2):
        metrics.multipart_orphans(count)
    assert samples(metrics)["attachd_multipart_orphans", frozenset()] == 2


def test_what_workers_count_has_room_on_a_full_disk(tmp_path):
    """Every block of a worker's files is there before it writes, and all series together fit."""
    reserve(tmp_path, 0)
    sizes = {path: path.stat().st_size for path in tmp_path.iterdir()}
    assert all(path.stat().st_blocks * 512 >= size for path, size in sizes.items())
    program = """
import os, sys
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
from service import metrics
metrics.count_as(0)
filled = metrics.Metrics("1")
for number in range(20):
    for method in ("GET", "HEAD", "PATCH", "other"):
        for code in (200, 204, 206, 304, 400, 403, 404, 409, 423, 499, 500, 503):
            filled.http_request(f"/files/{{upload_id}}/{number}", method, code, 1)
for operation in metrics.get_args(metrics.StorageOperation):
    for outcome in ("ok", "unavailable", "throttled", "error"):
        filled.storage_request("filesystem", operation, outcome, 1)
filled.keys({f"k_{number:012x}": metrics.KeyState.ACTIVE for number in range(100)})
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)
    assert {path: path.stat().st_size for path in tmp_path.iterdir()} == sizes
    for path, size in sizes.items():
        assert 0 < int.from_bytes(path.read_bytes()[:4], sys.byteorder) < size, path.name


def test_a_dead_worker_holds_nothing_and_has_counted(tmp_path):
    """Of its files the live gauges are empty and the rest as it was; none is given back to the disk."""
    reserve(tmp_path, 0)
    before = {path.name: path.stat().st_blocks for path in tmp_path.iterdir()}
    program = """
import os, sys
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
from service import metrics
metrics.count_as(0)
filled = metrics.Metrics("1")
filled.transfer_started("in")
filled.upload_created(metrics.Protocol.TUS)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)
    text = Summed(tmp_path).render().decode()
    assert 'attachd_transfers_in_flight{direction="in"} 1.0' in text
    forget_gauges(tmp_path, 0)
    text = Summed(tmp_path).render().decode()
    assert "attachd_transfers_in_flight{" not in text
    assert 'attachd_uploads_created_total{protocol="tus"} 1.0' in text
    assert {path.name: path.stat().st_blocks for path in tmp_path.iterdir()} == before


class Clock:
    """Each look is a second later."""

    at = 0.0

    def now(self):
        return 0.0

    def monotonic(self):
        self.at += 1
        return self.at


class Disk:
    """A storage that is full, short or slow as told."""

    name = "filesystem"
    puts = False

    def __init__(self, error: BaseException | None = None):
        self.error = error
        self.open_iterators = 0

    async def complete(self, upload_id, ledger, *, epoch):
        if self.error:
            raise self.error

    async def read_upload(self, ledger, start, end):
        self.open_iterators += 1
        try:
            for _ in range(end):
                yield b"x"
        finally:
            self.open_iterators -= 1

    def append(self, upload_id, ledger, *, epoch, **_options):
        return self

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_error):
        return None

    async def write(self, data, *, last=False):
        if self.error:
            raise self.error

    async def held(self):
        return Receipt(0)

    async def flush(self, *, last):
        return Receipt(1)


def metered(disk: Disk, metrics: Metrics) -> MeteredStorage:
    """The disk, metered."""
    return MeteredStorage(cast("Storage", disk), metrics, Clock())


def calls(metrics: Metrics) -> dict[tuple[str, str], float]:
    """(operation, outcome) and how often."""
    return {
        (dict(labels)["operation"], dict(labels)["outcome"]): value
        for (name, labels), value in samples(metrics).items()
        if name == "attachd_storage_requests_total"
    }


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (StorageFull(), "full"),
        (StorageShort(), "short"),
        (OSError(), "error"),
        (asyncio.CancelledError(), "cancelled"),
    ],
)
async def test_a_failed_call_to_storage_is_counted_by_its_outcome(error, outcome):
    """The error reaches the caller unchanged, and the call is counted under its outcome."""
    metrics = Metrics("1")
    storage = metered(Disk(error), metrics)
    with pytest.raises(type(error)) as caught:
        await storage.complete(UploadId("u"), (), epoch=1)
    assert caught.value is error
    assert calls(metrics) == {("complete", outcome): 1}


async def test_an_append_is_counted_write_by_write():
    """Each write and each flush of an append is one call."""
    metrics = Metrics("1")
    async with metered(Disk(), metrics).append(UploadId("u"), (), epoch=1, align=1) as appender:
        await appender.write(memoryview(b"a"))
        await appender.write(memoryview(b"b"))
        assert await appender.flush(last=True) == Receipt(1)
    assert calls(metrics) == {("write", "ok"): 2, ("flush", "ok"): 1}


async def test_a_reader_that_stops_early_leaves_nothing_open():
    """Closing the metered reading closes the adapter's."""
    disk = Disk()
    reading = cast("AsyncGenerator[bytes, None]", metered(disk, Metrics("1")).read_upload((), 0, 5))
    assert await anext(reading) == b"x"
    await reading.aclose()
    assert disk.open_iterators == 0
