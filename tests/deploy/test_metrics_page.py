"""docs/metrics.md tells of each metric, its labels and their values what the code does."""

from __future__ import annotations

import re
import time
from typing import Final, get_args

from service import metrics
from service.hashing import ALGORITHMS
from service.keyset import KeyState
from service.links import RESULTS
from service.model import Protocol
from service.outward import RESULTS as DELIVERY_RESULTS
from service.protocol.problems import KINDS
from tests.deploy.instruments import ROOT, instruments
from tests.e2e.process import ServiceProcess

PAGE: Final = (ROOT / "docs" / "metrics.md").read_text("utf-8")
#: of each label, and of the metrics that it is on, the values that there can be; None: the page says it in words
VALUES: Final[dict[tuple[str, str], set[str] | None]] = {
    ("after", ""): {name for _, name in metrics._GAPS} | {"ge1d"},
    ("algorithm", ""): {*ALGORITHMS, metrics.OTHER},
    ("backend", ""): {"filesystem", "s3"},
    ("code", ""): None,
    ("direction", ""): set(get_args(metrics.Direction)),
    ("endpoint", ""): None,
    ("kid", ""): None,
    ("method", ""): {*metrics.METHODS, metrics.OTHER},
    ("mode", ""): set(get_args(metrics.DownloadMode)),
    ("operation", ""): set(get_args(metrics.StorageOperation)),
    ("outcome", "attachd_storage_"): set(get_args(metrics.StorageOutcome)),
    ("outcome", "attachd_transfer_"): set(get_args(metrics.TransferOutcome)),
    ("protocol", ""): set(Protocol),
    ("reason", ""): set(KINDS),
    ("result", "attachd_checksum_"): set(get_args(metrics.ChecksumResult)),
    ("result", "attachd_token_"): set(RESULTS),
    ("result", "attachd_webhook_"): set(DELIVERY_RESULTS),
    ("route", ""): None,
    ("size_class", ""): {name for _, name in metrics._SIZE_CLASSES} | {"ge1gib"},
    ("state", ""): set(KeyState),
    ("verdict", ""): set(get_args(metrics.ScanOutcome)),
    ("version", ""): None,
}
#: only of a service with workers
SUMMED: Final = {"attachd_workers", "attachd_worker_deaths_total"}
#: only with endpoints or hooks
TOLD: Final = {"attachd_outbox_pending", "attachd_outbox_oldest_seconds", "attachd_webhook_deliveries_total"}


def rows(heading: str) -> list[list[str]]:
    """The cells of the table in a section."""
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def names(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def test_the_page_has_every_metric_and_no_other() -> None:
    """Name, type and labels of each are as they are made, and the meaning begins with what a scrape says."""
    told = {name.strip("`"): (kind, names(labels)) for name, kind, labels, _ in rows("What there is")}
    assert told == {one.name: (one.kind, set(one.labels)) for one in instruments().values()}
    for name, _, _, meaning in rows("What there is"):
        assert meaning.startswith(instruments()[name.strip("`")].help), name


def test_the_page_has_every_value_of_every_label() -> None:
    """What a label can be is told, and nothing that it cannot be."""
    told = {(label.strip("`"), "" if of == "all" else of.strip("`…")): values for label, of, values in rows("Labels")}
    assert told.keys() == VALUES.keys()
    for place, values in VALUES.items():
        assert told[place]
        if values is not None:
            assert names(told[place]) == values, place


def test_every_label_of_a_metric_is_explained() -> None:
    """For each label of each metric there is exactly one row."""
    for one in instruments().values():
        for label in one.labels:
            fits = [of for name, of in VALUES if name == label and one.name.startswith(of)]
            assert len(fits) == 1, (one.name, label)


def test_a_service_with_workers_exposes_what_the_page_has(tmp_path) -> None:
    """No metric is lost between workers and their sum, and none is there that the page does not have."""
    # a series with a label that is not known beforehand comes with its first event
    waiting = {name for name, one in instruments().items() if one.labels & {"kid", "backend", "route"}}
    with ServiceProcess(tmp_path, ATTACHD_WORKERS="2", ATTACHD_SWEEP_INTERVAL="1s") as service:
        deadline = time.monotonic() + 60
        while True:
            seen = {re.sub(r"_(?:bucket|sum|count)$", "", name.split("{")[0]) for name in service.metrics()}
            # what is counted in the store is there after a sweep
            if instruments().keys() - seen <= waiting | TOLD or time.monotonic() > deadline:
                break
            time.sleep(0.05)
    assert seen - instruments().keys() == set()
    assert instruments().keys() - seen <= waiting | TOLD
    assert seen >= SUMMED
