"""Every metric that attachd can expose, and what PromQL expressions ask for."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from service.metrics import Metrics, Summed, ready_in

ROOT: Final = Path(__file__).resolve().parents[2]
#: what Prometheus adds to every series
ADDED: Final = frozenset({"job", "instance"})
#: what a histogram is exposed as
_PARTS: Final = ("_bucket", "_sum", "_count")
_SELECTOR: Final = re.compile(r"\b(attachd_\w+)\s*(?:\{([^}]*)\})?")
_MATCHER: Final = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')
_GROUPING: Final = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_LEGEND: Final = re.compile(r"\{\{\s*(\w+)\s*\}\}")


@dataclass(frozen=True, slots=True)
class Instrument:
    """One metric as it is made: counters with their `_total`."""

    name: str
    kind: str
    labels: frozenset[str]
    help: str


@cache
def instruments() -> dict[str, Instrument]:
    """By name: those of a process, and those that only a service with workers has."""
    alone = Metrics("1").registry
    ready_in(alone)
    with tempfile.TemporaryDirectory() as directory:
        summed = Summed(Path(directory))._registry
    found = [*_made_in(alone), *_made_in(summed)]
    return {instrument.name: instrument for instrument in found}


def _made_in(registry: CollectorRegistry) -> list[Instrument]:
    return [
        Instrument(
            one._name + ("_total" if one._type == "counter" else ""),
            str(one._type),
            frozenset(one._labelnames),
            one._documentation or "",
        )
        for one in registry._collector_to_names
        if isinstance(one, MetricWrapperBase)
    ]


def series() -> dict[str, frozenset[str]]:
    """What can be asked for, with its labels: a histogram by its parts."""
    found = {}
    for one in instruments().values():
        if one.kind != "histogram":
            found[one.name] = one.labels | ADDED
            continue
        for part in _PARTS:
            found[one.name + part] = one.labels | ADDED | ({"le"} if part == "_bucket" else frozenset())
    return found


def faults(expression: str, legend: str = "") -> list[str]:
    """What an expression, or the legend of what it finds, names that no metric of ours has."""
    known, wrong = series(), []
    reachable: set[str] = set()
    for name, matchers in _SELECTOR.findall(expression):
        if name not in known:
            wrong.append(f"there is no {name}")
            continue
        reachable |= known[name]
        wrong += [f"{name} has no {label}" for label in _MATCHER.findall(matchers) if label not in known[name]]
    if not reachable:
        # it asks for what rules have recorded, or for a metric of Prometheus
        return wrong
    asked = {label.strip() for group in _GROUPING.findall(expression) for label in group.split(",") if label.strip()}
    asked |= set(_LEGEND.findall(legend))
    return wrong + [f"nothing in it has a {label}" for label in sorted(asked - reachable)]
