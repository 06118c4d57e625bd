"""`python -m tests.bench`, or `make bench`: see README.md beside this file."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

from service.units import format_size, parse_size
from tests.bench import machine
from tests.bench.cases import CASES, Load
from tests.bench.client import Source
from tests.bench.everybody import SIDES
from tests.bench.fetching import get
from tests.bench.peers import PEERS
from tests.bench.report import Row, Sample, Samples, by_size, columns, rows, summary, table
from tests.bench.sides import Side

#: what the names of our own sides begin with
OURS: Final = "attachd"


def measure(side: Side, name: str, load: Load, source: Source, state: Any, pages: machine.Pages) -> Sample:
    """One side does the case's work once."""
    work = CASES[name].work(side, load, source, state)
    warm = pages.warm(work.writes) if work.writes else True
    pids = side.pids()
    machine.forget_peaks(pids)
    cpu, client, start = machine.cpu_seconds(pids), time.process_time(), time.perf_counter()
    latencies = work.run()
    seconds, client = time.perf_counter() - start, time.process_time() - client
    cpu, peak = machine.cpu_seconds(pids) - cpu, machine.peak_bytes(pids)
    if work.writes:
        discard(side.files)
    return Sample(seconds, work.amount, cpu, client, peak, latencies, warm)


def discard(files: Path) -> None:
    """Nothing of what was stored is left to be written back while the next one is measured.

    Behind the side's back: nobody asks it for these files again.
    """
    for path in files.rglob("*"):
        if path.is_file():
            path.unlink()


@dataclasses.dataclass(frozen=True)
class Measured:
    """What came out of a case."""

    case: str
    #: titles by part
    titles: Mapping[str, str]
    #: samples by part
    parts: Mapping[str, Samples]
    #: what each side did, in words
    did: Mapping[str, str]

    def show(self) -> None:
        """Prints a table for each part."""
        unit = CASES[self.case].unit
        for part, samples in self.parts.items():
            print(f"\n### {self.case}: {self.titles[part]}\n")
            print(table(columns(samples), rows(samples, unit)))
        if len(self.parts) > 1:
            print(f"\n### {self.case}: server CPU by size\n")
            print(table(*by_size(self.parts)))
        sys.stdout.flush()

    def summed_up(self) -> list[Row]:
        """A line for each of our own sides in each part."""
        unit = CASES[self.case].unit
        return [
            Row(self.titles[part], unit, own, samples)
            for part, samples in self.parts.items()
            for own in samples
            if own.startswith(OURS)
        ]


def run_case(name: str, sides: Sequence[str], load: Load, options: Options, directory: Path) -> Measured:
    """Every side is started, takes its turn in each round, and is ended."""
    case = CASES[name]
    taking = [side for side in sides if name in SIDES[side].CASES]
    size = max(load.size, load.small)
    with ExitStack() as stack:
        source = stack.enter_context(closing(Source(directory / "source", size)))
        pages = machine.Pages(directory)
        started: dict[str, tuple[Side, Any]] = {}
        for label in taking:
            side = stack.enter_context(SIDES[label](directory / f"{name}-{label}", name, options.durability))
            # Once in small, so that what a process does only once is behind it.
            small = Load.quick()
            if small.size <= size:
                measure(side, name, small, source, case.set_up(side, small, source), pages)
            started[label] = (side, case.set_up(side, load, source))
        loads = case.parts(load)
        samples: Mapping[str, Mapping[str, list[Sample]]] = {part: {label: [] for label in taking} for part in loads}
        deadline = time.monotonic() + options.case_seconds
        for number in range(options.rounds):
            if number and time.monotonic() > deadline:
                break
            # Another one begins each time: to come after a certain other may be a disadvantage.
            for part in turned(list(loads), number):
                for label in turned(taking, number):
                    side, state = started[label]
                    samples[part][label].append(measure(side, name, loads[part], source, state, pages))
        titles = {part: case.title.format(**texts(part_load)) for part, part_load in loads.items()}
        return Measured(name, titles, samples, {label: str(side.does) for label, (side, _) in started.items()})


def turned(names: Sequence[str], number: int) -> list[str]:
    """The same with another one first."""
    turn = number % len(names)
    return [*names[turn:], *names[:turn]]


def texts(load: Load) -> dict[str, object]:
    """The numbers of a load as titles tell them."""
    sizes = {"size", "chunk", "mib", "small", "each", "open_size"}
    return {name: format_size(value) if name in sizes else value for name, value in dataclasses.asdict(load).items()}


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says."""

    rounds: int
    durability: str
    case_seconds: float


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="attachd side by side with others.")
    parser.add_argument(
        "--peers", action="store_true", help="get the other servers that this machine can have, and end"
    )
    parser.add_argument("--rounds", type=int, help="how often each side takes its turn (5; quick: 1)")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this one; may be repeated")
    parser.add_argument("--side", action="append", choices=list(SIDES), help="only this one; may be repeated")
    parser.add_argument("--size", type=parse_size, help="bytes of a large file (512MiB)")
    parser.add_argument(
        "--durability",
        choices=["none", "complete"],
        default="none",
        help="for every side but the peers (none; attachd's own: complete)",
    )
    parser.add_argument(
        "--case-seconds", type=float, default=180.0, help="a case that took longer begins no further round (180)"
    )
    parser.add_argument("--directory", type=Path, help="where files go, on the disk to measure (the system's own)")
    parser.add_argument("--summary", action="store_true", help="one more table at the end, a line for each case")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, and nothing else")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the cases asked for and prints what came out."""
    given = parse(arguments)
    if given.peers:
        get()
        return
    load = Load.quick() if given.quick else Load()
    if given.size:
        load = dataclasses.replace(load, size=given.size)
    options = Options(max(1, given.rounds or (1 if given.quick else 5)), given.durability, given.case_seconds)
    # An orderly end, so that the servers are ended as well.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="attachd-bench-", dir=given.directory) as name:
        directory = Path(name)
        described = machine.describe(directory)
        print("\n".join(described))
        print(f"rounds: {options.rounds}; durability: {options.durability} for every side but the peers")
        if given.quick:
            print("QUICK: sizes too small to mean anything")
        begun = time.monotonic()
        missing = {side: SIDES[side].missing() for side in SIDES if not given.side or side in given.side}
        for side, why in missing.items():
            if why:
                print(f"{side}: left out: {why}")
        sides = [side for side, why in missing.items() if not why]
        found, failed = run(given.case or list(CASES), sides, load, options, directory)
        if given.summary:
            sum_up(found, described)
        print("\n### What they did\n")
        tell(found, sides)
        print(f"\ntook {time.monotonic() - begun:.0f} s")
    if failed:
        sys.exit(1)


def run(
    cases: Sequence[str], sides: Sequence[str], load: Load, options: Options, directory: Path
) -> tuple[list[Measured], bool]:
    """Measures and shows one case after another; what came out, and whether one of them failed."""
    found: list[Measured] = []
    failed = False
    for case in cases:
        if why := CASES[case].missing():
            print(f"\n### {case}: left out: {why}")
        elif any(case in SIDES[side].CASES for side in sides):
            try:
                found.append(run_case(case, sides, load, options, directory))
            except (AssertionError, OSError) as error:
                # the other cases are worth having
                failed = True
                print(f"\n### {case}: FAILED: {error}")
            else:
                found[-1].show()
    return found, failed


def sum_up(found: Sequence[Measured], described: Sequence[str]) -> None:
    """Prints what fits into a README."""
    against = ["limit-c", *PEERS]
    lines = [line for measured in found for line in measured.summed_up()]
    print(f"\n### Summary of {time.strftime('%Y-%m-%d', time.gmtime())}\n")
    print(f"{'; '.join(described)}. Columns of others: attachd's throughput ÷ theirs / attachd's CPU ÷ theirs.\n")
    print(table(*summary(lines, against)))
    for measured in found:
        if len(measured.parts) > 1:
            header, (first, *_) = by_size(measured.parts)
            print(f"\n{first[0]}, server CPU per GiB: {header[-1]}: {first[-1]}")
    print()
    tell(found, [label for label in SIDES if label.startswith(OURS) or label in against])


def tell(found: Sequence[Measured], labels: Sequence[str]) -> None:
    """Prints what each of these sides did, and in which cases if not always the same."""
    for label in labels:
        ways: dict[str, list[str]] = {}
        for measured in found:
            if label in measured.did:
                ways.setdefault(measured.did[label], []).append(measured.case)
        for words, cases in ways.items():
            where = f" ({', '.join(cases)})" if len(ways) > 1 else ""
            print(f"- {label}{where}: {words}")


if __name__ == "__main__":
    main()
