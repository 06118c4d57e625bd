"""Samples into a table: medians, and ratios that are taken round by round.

Speed drifts from minute to minute, so a ratio compares what ran in the same round, and the median
of these ratios is shown. Rounds whose pages were cold (`machine.Pages`) are left out, unless all are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

GIB: Final = 1 << 30
MB: Final = 1_000_000


@dataclass(frozen=True)
class Sample:
    """One side in one round of one case."""

    seconds: float
    #: bytes, or requests
    amount: int
    cpu_seconds: float
    client_seconds: float
    peak_bytes: int
    #: seconds of each request; empty where there was one
    latencies: Sequence[float]
    warm: bool

    @property
    def rate(self) -> float:
        """Bytes or requests per second."""
        return self.amount / self.seconds

    @property
    def cost(self) -> float:
        """Processor seconds per byte or request."""
        return self.cpu_seconds / self.amount


#: by side, one for each round
Samples = Mapping[str, Sequence[Sample]]


def columns(samples: Samples) -> tuple[str, ...]:
    """The header of what `rows` returns."""
    ratio = f"{next(iter(samples))} ÷ it"
    measured = ("peak memory", "client busy", "rounds")
    return ("side", "throughput", "spread", ratio, "server CPU", ratio, "p50", "p99", *measured)


def rows(samples: Samples, unit: str) -> list[tuple[str, ...]]:
    """A line for each side, in order; ratios are those of the first side to it."""
    first = next(iter(samples))
    return [_row(name, samples[name], samples[first] if name != first else None, unit) for name in samples]


def _row(name: str, own: Sequence[Sample], first: Sequence[Sample] | None, unit: str) -> tuple[str, ...]:
    kept, cold = _kept(own)
    rates = [sample.rate for sample in kept]
    rate = median(rates)
    return (
        name,
        _rate(rate, unit),
        f"{(max(rates) - min(rates)) / rate:.0%}" if len(rates) > 1 else "-",
        _ratio(first, own, lambda sample: sample.rate),
        _cost(own, unit),
        _ratio(first, own, lambda sample: sample.cost),
        _latency(kept, 0.50),
        _latency(kept, 0.99),
        f"{median(sample.peak_bytes for sample in kept) / MB:.0f} MB",
        f"{median(sample.client_seconds / sample.seconds for sample in kept):.0%}",
        f"{len(own)}, all cold" if cold else f"{len(kept)} of {len(own)}",
    )


def by_size(parts: Mapping[str, Samples]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and lines: for each side what a byte costs it at each size, and how far all but the first are apart.

    Args:
        parts: samples by size, smallest first. The smallest is mostly what an upload costs, not what its bytes do.
    """
    names = list(parts)
    header = ("side", *names, f"{names[1]} to {names[-1]} apart")
    lines = [
        (side, *(_cost(samples[side], "bytes") for samples in parts.values()), f"{_apart(parts, side, names[1:]):.0%}")
        for side in next(iter(parts.values()))
    ]
    return header, lines


def _apart(parts: Mapping[str, Samples], side: str, names: Sequence[str]) -> float:
    """(most - least) / least of the costs, each as its share of what the sizes cost in the same round together."""
    rounds = list(zip(*(parts[name][side] for name in names), strict=True))
    rounds = [each for each in rounds if all(sample.warm for sample in each)] or rounds
    shares = [[sample.cost / sum(other.cost for other in each) for sample in each] for each in rounds]
    middle = [median(of_size) for of_size in zip(*shares, strict=True)]
    return float(max(middle) / min(middle) - 1)


@dataclass(frozen=True)
class Row:
    """A line of the summary: one of our sides in one part of a case, with all that took part."""

    title: str
    unit: str
    own: str
    samples: Samples


def summary(found: Sequence[Row], others: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and lines: what `own` did, and its throughput and cost over those of each other that took part.

    Args:
        found: what was measured.
        others: labels, in order. One on a bucket shares the column of the same on a disk.
    """
    places = list(dict.fromkeys(_place(other) for other in others if any(other in row.samples for row in found)))
    lines = []
    for row in found:
        own = row.samples[row.own]
        rate, peak = median(sample.rate for sample in _kept(own)[0]), median(sample.peak_bytes for sample in own)
        cells = {
            _place(other): f"{_ratio(own, row.samples[other], lambda sample: sample.rate)} / "
            f"{_ratio(own, row.samples[other], lambda sample: sample.cost)}"
            for other in others
            if other in row.samples
        }
        measured = (_rate(rate, row.unit), _cost(own, row.unit), f"{peak / MB:.0f} MB")
        lines.append((row.title, row.own, *measured, *(cells.get(place, "-") for place in places)))
    return ("case", "side", "throughput", "server CPU", "peak memory", *places), lines


def _place(label: str) -> str:
    return label.replace("-s3", "")


def _rate(rate: float, unit: str) -> str:
    return f"{rate / 1e9:.2f} GB/s" if unit == "bytes" else f"{rate:.0f}/s"


def _cost(samples: Sequence[Sample], unit: str) -> str:
    """The median of what counts."""
    cost = median(sample.cost for sample in _kept(samples)[0])
    return f"{cost * GIB:.2f} s/GiB" if unit == "bytes" else f"{cost * 1000:.3f} ms"


def _kept(samples: Sequence[Sample]) -> tuple[Sequence[Sample], bool]:
    """What counts, and whether all of it is cold."""
    warm = [sample for sample in samples if sample.warm]
    return (warm, False) if warm else (samples, True)


def _ratio(first: Sequence[Sample] | None, own: Sequence[Sample], value: Callable[[Sample], float]) -> str:
    if first is None:
        return "1"
    pairs = list(zip(first, own, strict=True))
    warm = [pair for pair in pairs if pair[0].warm and pair[1].warm] or pairs
    return f"{median(value(one) / value(other) for one, other in warm):.2f}"


def _latency(samples: Iterable[Sample], share: float) -> str:
    """The median over the rounds of the time in which this share of requests was answered."""
    found = [sorted(sample.latencies) for sample in samples if sample.latencies]
    if not found:
        return "-"
    return f"{median(times[min(int(share * len(times)), len(times) - 1)] for times in found) * 1000:.2f} ms"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown whose columns stand below each other."""
    widths = [max(len(line[at]) for line in (header, *lines)) for at in range(len(header))]
    rendered = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in (header, *lines)
    ]
    return "\n".join([rendered[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *rendered[1:]])
