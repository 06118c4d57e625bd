"""What operators see: every instrument, its labels, its buckets (contract, section 10).

Label sets are closed, so no client can make series without end (lesson M1): values that come from
outside are held against a table here and counted as `other` where they are not in it. Series of
closed sets exist from the start, so that a rate over the first event is right. Counting takes
microseconds, and a scrape of one process does no I/O.

Where several processes are one service, each counts into mapped files of its own in a directory
that they share (prometheus_client's multiprocess mode), and `Summed` is their sum. The files are
named after the worker's number and not its process, so that one that is started again goes on
counting where its predecessor died, and restarts leave nothing behind.
"""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import product
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

from service.hashing import ALGORITHMS
from service.keyset import KeyState
from service.links import RESULTS, Result
from service.model import Protocol
from service.outward import RESULTS as DELIVERY_RESULTS
from service.protocol.problems import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from service.metadata.base import Totals
    from service.outward import Result as DeliveryResult

# a `_created` series beside each counter would double the scrape and tell nothing new
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE: Final = prometheus_client.CONTENT_TYPE_LATEST

Direction: TypeAlias = Literal["in", "out"]
#: how a transfer ended
TransferOutcome: TypeAlias = Literal["ok", "client_abort", "timeout", "taken_over", "drained", "error"]
DownloadMode: TypeAlias = Literal["sendfile", "proxy"]
ChecksumResult: TypeAlias = Literal["ok", "mismatch"]
#: what came of looking for viruses
ScanOutcome: TypeAlias = Literal["clean", "infected", "skipped_size", "failed"]
StorageOperation: TypeAlias = Literal[
    # calls of the storage port
    "open", "probe", "free_bytes", "write", "flush", "read", "concatenate", "complete", "discard", "drop", "delete",
    "open_file", "sync", "put", "recorded",
    # calls of the S3 API, where that is the backend
    "head_bucket", "put_object", "get_object", "head_object", "copy_object", "delete_object", "list_objects",
    "create_multipart_upload", "upload_part", "upload_part_copy", "complete_multipart_upload",
    "abort_multipart_upload", "list_multipart_uploads",
]  # fmt: skip
StorageOutcome: TypeAlias = Literal["ok", "full", "unavailable", "throttled", "short", "stale", "cancelled", "error"]

#: what the gauges of several processes are together: their sum or maximum, without the dead; or what was set last
_Mode: TypeAlias = Literal["livesum", "livemax", "mostrecent"]
#: what the files of a worker hold at most, many times over
_FILE_BYTES: Final = {"counter": 2**18, "histogram": 2**20} | {f"gauge_{mode}": 2**15 for mode in get_args(_Mode)}
_HEADER_BYTES: Final = 8
#: what `reserve` takes for a worker
WORKER_BYTES: Final = sum(_FILE_BYTES.values())

OTHER: Final = "other"
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
#: more routes than attachd has: a caller that passes paths for templates cannot make more series
MOST_ROUTES: Final = 64

_KIB: Final = 2**10
_MIB: Final = 2**20
_GIB: Final = 2**30
#: smaller transfers measure the round trip, not the line
THROUGHPUT_FROM_BYTES: Final = _MIB

_REQUEST_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_WAIT_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_TRANSFER_SECONDS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400)
_ELAPSED_SECONDS: Final = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 6 * 3600, 86400, 3 * 86400, 7 * 86400)
_SIZES: Final = (0, _KIB, 16 * _KIB, 256 * _KIB, _MIB, 8 * _MIB, 64 * _MIB, 256 * _MIB, _GIB, 2 * _GIB, 4 * _GIB)
_RATES: Final = tuple(2**power for power in range(14, 33, 2))
_SIZE_CLASSES: Final = ((_MIB, "lt1mib"), (64 * _MIB, "lt64mib"), (_GIB, "lt1gib"))
_GAPS: Final = ((60.0, "lt1m"), (3600.0, "lt1h"), (86400.0, "lt1d"))


class _Quick:
    """An instrument that looks its series up at a tenth of the price: requests ask for twenty of them."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._series: dict[tuple[str, ...], Any] = {}
        super().__init__(*args, **options)

    def labels(self, *values: str) -> Any:
        found = self._series.get(values)
        if found is None:
            found = self._series[values] = super().labels(*values)  # type: ignore[misc]
        return found


class _Counter(_Quick, Counter):  # type: ignore[misc]
    pass


class _Gauge(_Quick, Gauge):  # type: ignore[misc]
    pass


class _Histogram(_Quick, Histogram):  # type: ignore[misc]
    pass


class Metrics:
    """The instruments of one process, in a registry of their own."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self._routes: set[str] = set()
        self._make_transfers()
        self._make_uploads()
        self._make_edge()
        self._make_inside()
        self._make_outbox()
        self._gauge("attachd_build_info", "Which attachd this is.", "livemax", "version").labels(version).set(1)

    def render(self) -> bytes:
        """The exposition, to be served as `CONTENT_TYPE`."""
        return generate_latest(self.registry)

    # transfers
    def _make_transfers(self) -> None:
        protocols, directions = tuple(Protocol), get_args(Direction)
        self._received = self._counter(
            "attachd_upload_bytes_received_total", "Bytes of request bodies, kept or not.", "protocol"
        )
        self._committed = self._counter(
            "attachd_upload_bytes_committed_total", "Bytes that offsets moved by; received - committed is waste.",
            "protocol",
        )  # fmt: skip
        self._sent = self._counter("attachd_download_bytes_sent_total", "Bytes of files sent.", "mode")
        self._throughput = self._histogram(
            "attachd_transfer_throughput_bytes_per_second", "Speed of transfers of 1 MiB and more.", _RATES, "direction"
        )
        self._duration = self._histogram(
            "attachd_transfer_duration_seconds", "How long one request moved bytes.", _TRANSFER_SECONDS,
            "direction", "outcome",
        )  # fmt: skip
        self._in_flight = self._gauge(
            "attachd_transfers_in_flight", "Requests that move bytes now.", "livesum", "direction"
        )
        _warm(self._received, protocols)
        _warm(self._committed, protocols)
        _warm(self._sent, get_args(DownloadMode))
        _warm(self._throughput, directions)
        _warm(self._duration, directions, get_args(TransferOutcome))
        _warm(self._in_flight, directions)

    def upload_received(self, protocol: Protocol, size: int) -> None:
        """Bytes arrived, whether or not they will be kept."""
        self._received.labels(protocol).inc(size)

    def upload_committed(self, protocol: Protocol, size: int) -> None:
        """An upload's offset moved."""
        self._committed.labels(protocol).inc(size)

    def download_sent(self, mode: DownloadMode, size: int) -> None:
        """Bytes of a file went to a client."""
        self._sent.labels(mode).inc(size)

    def transfer_started(self, direction: Direction) -> None:
        """A request begins to move bytes; `transfer_ended` must follow."""
        self._in_flight.labels(direction).inc()

    def transfer_ended(self, direction: Direction, outcome: TransferOutcome, size: int, seconds: float) -> None:
        """The transfer is over, with the bytes it moved and the time it took."""
        self._in_flight.labels(direction).dec()
        self._duration.labels(direction, outcome).observe(seconds)
        if size >= THROUGHPUT_FROM_BYTES and seconds > 0:
            self._throughput.labels(direction).observe(size / seconds)

    # uploads
    def _make_uploads(self) -> None:
        protocols, gaps = tuple(Protocol), [name for _, name in _GAPS] + ["ge1d"]
        classes = [name for _, name in _SIZE_CLASSES] + ["ge1gib"]
        self._created = self._counter("attachd_uploads_created_total", "Uploads made.", "protocol")
        self._finished = self._counter("attachd_uploads_finished_total", "Uploads that became ready.", "protocol")
        self._failed = self._counter("attachd_uploads_failed_total", "Uploads that failed.", "protocol", "reason")
        self._resumed = self._counter("attachd_uploads_resumed_total", "Uploads resumed, by the pause.", "after")
        self._size = self._histogram("attachd_upload_size_bytes", "Sizes of finished uploads.", _SIZES)
        self._elapsed = self._histogram(
            "attachd_upload_elapsed_seconds", "From creation to ready.", _ELAPSED_SECONDS, "size_class"
        )
        self._open = self._gauge("attachd_uploads_open", "Unfinished uploads; counted in the store.", "mostrecent")
        self._files = self._gauge("attachd_files", "Files; counted in the store.", "mostrecent")
        self._stored = self._gauge(
            "attachd_stored_bytes", "Bytes of files and of unfinished uploads; counted in the store.", "mostrecent"
        )
        _warm(self._created, protocols)
        _warm(self._finished, protocols)
        _warm(self._failed, protocols, KINDS)
        _warm(self._resumed, gaps)
        _warm(self._elapsed, classes)

    def upload_created(self, protocol: Protocol) -> None:
        """An upload exists that did not."""
        self._created.labels(protocol).inc()

    def upload_finished(self, protocol: Protocol, size: int, seconds: float) -> None:
        """An upload became ready, so long after its creation."""
        self._finished.labels(protocol).inc()
        self._size.observe(size)
        size_class = next((name for limit, name in _SIZE_CLASSES if size < limit), "ge1gib")
        self._elapsed.labels(size_class).observe(seconds)

    def upload_failed(self, protocol: Protocol, reason: str) -> None:
        """An upload failed; the reason is a slug of `protocol.problems`."""
        self._failed.labels(protocol, reason if reason in KINDS else "internal").inc()

    def upload_resumed(self, pause_seconds: float) -> None:
        """An upload that had been cut goes on, after a pause without bytes."""
        self._resumed.labels(next((name for limit, name in _GAPS if pause_seconds < limit), "ge1d")).inc()

    def totals(self, totals: Totals) -> None:
        """The gauges show what was counted in the store (lesson M1: never counted up and down here)."""
        self._open.set(totals.uploads_open)
        self._files.set(totals.files)
        self._stored.set(totals.stored_bytes)

    # the HTTP edge
    def _make_edge(self) -> None:
        self._requests = self._counter("attachd_http_requests_total", "Requests answered.", "route", "method", "code")
        self._request_seconds = self._histogram(
            "attachd_http_request_duration_seconds", "Head read to answer sent.", _REQUEST_SECONDS, "route", "method"
        )
        self._verifications = self._counter("attachd_token_verifications_total", "Tokens looked at.", "result")
        self._key_tokens = self._counter("attachd_key_tokens_total", "Tokens verified by each key.", "kid")
        self._checksums = self._counter(
            "attachd_checksum_verifications_total", "Clients' checksums held against bodies.", "algorithm", "result"
        )
        self._keys = self._gauge(
            "attachd_keys", "1 for each key of the set and the state that it is in.", "livemax", "kid", "state"
        )
        self._key_states: dict[str, KeyState] = {}
        _warm(self._verifications, RESULTS)
        _warm(self._checksums, ALGORITHMS, get_args(ChecksumResult))

    def http_request(self, route: str | None, method: str, code: int, seconds: float) -> None:
        """A request was answered. `route` is the template that matched, never a path; None: nothing did."""
        label, verb = self._route(route), method if method in METHODS else OTHER
        self._requests.labels(label, verb, str(code) if 100 <= code < 600 else OTHER).inc()
        self._request_seconds.labels(label, verb).observe(seconds)

    def _route(self, route: str | None) -> str:
        if route is None or (route not in self._routes and len(self._routes) >= MOST_ROUTES):
            return OTHER
        self._routes.add(route)
        return route

    def token_verified(self, result: Result, kid: str | None = None) -> None:
        """A token was looked at; `kid` only of a key that verified it."""
        self._verifications.labels(result).inc()
        if kid is not None:
            self._key_tokens.labels(kid).inc()

    def keys(self, states: Mapping[str, KeyState]) -> None:
        """These keys are in the set, by kid, and no others."""
        if states == self._key_states:
            return
        for kid, state in self._key_states.items():
            self._keys.labels(kid, state).set(0)
        for kid, state in states.items():
            self._keys.labels(kid, state).set(1)
        self._key_states = dict(states)

    def checksum_verified(self, algorithm: str, result: ChecksumResult) -> None:
        """A client's checksum was held against the body."""
        self._checksums.labels(algorithm if algorithm in ALGORITHMS else OTHER, result).inc()

    # the inside
    def _make_inside(self) -> None:
        self._hashed = self._counter("attachd_hashed_bytes_total", "Bytes hashed for blocks.", "algorithm")
        self._storage = self._counter(
            "attachd_storage_requests_total", "Calls to storage.", "backend", "operation", "outcome"
        )
        self._storage_seconds = self._histogram(
            "attachd_storage_request_duration_seconds", "Time inside storage.", _WAIT_SECONDS,
            "backend", "operation", "outcome",
        )  # fmt: skip
        self._free = self._gauge(
            "attachd_storage_free_bytes", "Room left, less the reserve; absent where the storage has no end.",
            "mostrecent", "backend",
        )  # fmt: skip
        self._buffers = self._gauge("attachd_buffer_bytes", "Memory held for request bodies.", "livesum")
        self._buffer_limit = self._gauge("attachd_buffer_limit_bytes", "The most it may be.", "livesum")
        self._lag = self._histogram(
            "attachd_event_loop_lag_seconds", "How late the event loop runs what is due.", _WAIT_SECONDS
        )
        self._takeovers = self._counter("attachd_lock_takeovers_total", "Leases taken over from a running request.")
        self._lock_wait = self._histogram("attachd_lock_wait_seconds", "Waits for a lease.", _WAIT_SECONDS)
        self._reclaimed = self._counter("attachd_gc_reclaimed_bytes_total", "Bytes given back by the sweeper.")
        self._gc_at = self._gauge(
            "attachd_gc_last_success_timestamp_seconds", "When a sweep last ended well.", "mostrecent"
        )
        self._orphans = self._gauge(
            "attachd_multipart_orphans", "Unfinished uploads in storage that no record needs, after the last pass.",
            "mostrecent",
        )  # fmt: skip
        self._scans = self._counter("attachd_scans_total", "Files looked through for viruses, or not.", "verdict")
        self._scan_seconds = self._histogram(
            "attachd_scan_duration_seconds", "How long a scan took, reading included.", _REQUEST_SECONDS
        )
        self._draining = self._gauge("attachd_draining", "1 while the service is stopping.", "livemax")
        _warm(self._hashed, ("xxh128", "sha256"))
        _warm(self._scans, get_args(ScanOutcome))

    def hashed(self, algorithm: str, size: int) -> None:
        """Bytes went through a hash of ours."""
        self._hashed.labels(algorithm if algorithm in ALGORITHMS else OTHER).inc(size)

    def storage_request(
        self, backend: str, operation: StorageOperation, outcome: StorageOutcome, seconds: float
    ) -> None:
        """One call to storage ended."""
        self._storage.labels(backend, operation, outcome).inc()
        self._storage_seconds.labels(backend, operation, outcome).observe(seconds)

    def storage_free(self, backend: str, size: int) -> None:
        """So many bytes may still be stored."""
        self._free.labels(backend).set(size)

    def buffers(self, size: int) -> None:
        """So many bytes of buffers are held now."""
        self._buffers.set(size)

    def buffer_limit(self, size: int) -> None:
        """The most that may be held."""
        self._buffer_limit.set(size)

    def event_loop_lag(self, seconds: float) -> None:
        """The loop ran something so much later than asked."""
        self._lag.observe(max(seconds, 0.0))

    def lock_taken_over(self) -> None:
        """A newer request took a lease from a running one."""
        self._takeovers.inc()

    def lock_waited(self, seconds: float) -> None:
        """A request got its lease, or gave up, after so long."""
        self._lock_wait.observe(seconds)

    def gc_reclaimed(self, size: int) -> None:
        """Bytes were given back."""
        self._reclaimed.inc(size)

    def gc_succeeded(self, at: float) -> None:
        """A sweep ended well at the instant."""
        self._gc_at.set(at)

    def multipart_orphans(self, count: int) -> None:
        """So many unfinished uploads are left in storage that no record needs."""
        self._orphans.set(count)

    def scanned(self, verdict: ScanOutcome, seconds: float | None) -> None:
        """A file was looked through, in so many seconds, or passed over."""
        self._scans.labels(verdict).inc()
        if seconds is not None:
            self._scan_seconds.observe(seconds)

    def draining(self, *, on: bool) -> None:
        """Whether the service is stopping."""
        self._draining.set(int(on))

    # events, and who is asked
    def _make_outbox(self) -> None:
        self._pending = self._gauge(
            "attachd_outbox_pending",
            "Events that wait for an endpoint; counted in the store.",
            "mostrecent",
            "endpoint",
        )
        self._oldest = self._gauge(
            "attachd_outbox_oldest_seconds", "How long the oldest of them has waited.", "mostrecent", "endpoint"
        )
        self._deliveries = self._counter(
            "attachd_webhook_deliveries_total", "Tries to send an event, or to ask a hook.", "endpoint", "result"
        )

    def expect_endpoints(self, names: Sequence[str]) -> None:
        """These are in the settings: endpoints by id, hooks by name."""
        _warm(self._deliveries, names, DELIVERY_RESULTS)

    def outbox(self, endpoint: str, pending: int, oldest_seconds: float) -> None:
        """What waits for the endpoint, as counted in the store."""
        self._pending.labels(endpoint).set(pending)
        self._oldest.labels(endpoint).set(oldest_seconds)

    def webhook_delivered(self, endpoint: str, result: DeliveryResult) -> None:
        """A try ended. `endpoint` is an id of the settings, or a hook's name."""
        self._deliveries.labels(endpoint, result).inc()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return _Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, mode: _Mode, *labels: str) -> Gauge:
        return _Gauge(name, text, labels, registry=self.registry, multiprocess_mode=mode)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return _Histogram(name, text, labels, buckets=buckets, registry=self.registry)


def ready_in(registry: CollectorRegistry) -> Callable[[bool], None]:
    """The registry shows whether the service is ready, as last told."""
    gauge = Gauge("attachd_ready", "1 if /readyz was 200 at the last look, seconds ago.", registry=registry)
    return gauge.set


def _warm(instrument: Counter | Gauge | Histogram, *values: Iterable[str]) -> None:
    for labels in product(*values):
        instrument.labels(*labels)


def count_as(worker: int) -> None:
    """Instruments made from now on count as those of that worker, in the directory that the environment names.

    Once in a process, before `Metrics`. No two processes may be the same worker at once.
    """
    values.ValueClass = values.MultiProcessValue(lambda: worker)  # type: ignore[no-untyped-call]


def reserve(directory: Path, worker: int) -> None:
    """The worker's files are there, and no write to them can find the disk full. Blocks. Raises OSError."""
    directory.mkdir(mode=0o700, exist_ok=True)
    for name, size in _FILE_BYTES.items():
        with _file(directory, name, worker).open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, size)


def forget_gauges(directory: Path, worker: int) -> None:
    """What the worker's process held counts no more: it has ended. Its counters stay. Blocks.

    The files stay as well, for its successor: what is in one is as long as its header says.
    """
    for name in _FILE_BYTES:
        if name.startswith("gauge_live"):
            with suppress(FileNotFoundError), _file(directory, name, worker).open("r+b") as file:
                file.write(bytes(_HEADER_BYTES))


def _file(directory: Path, name: str, worker: int) -> Path:
    return directory / f"{name}_{worker}.db"


class Summed:
    """The metrics of all workers together, with those of the supervisor."""

    def __init__(self, directory: Path) -> None:
        self._registry = CollectorRegistry()
        self._workers = Gauge("attachd_workers", "Worker processes that serve.", registry=self._registry)
        self._deaths = Counter(
            "attachd_worker_deaths", "Worker processes that ended unasked and were replaced.", registry=self._registry
        )
        self.ready = ready_in(self._registry)
        MultiProcessCollector(self._registry, str(directory))  # type: ignore[no-untyped-call]

    def workers(self, count: int) -> None:
        """So many serve now."""
        self._workers.set(count)

    def worker_died(self) -> None:
        """One ended that should not have."""
        self._deaths.inc()

    def render(self) -> bytes:
        """The exposition. Blocks: reads the workers' files."""
        return generate_latest(self._registry)
