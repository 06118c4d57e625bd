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
from typing import Any

from service.units import format_size, parse_size
from tests.bench import machine
from tests.bench.cases import CASES, Load, Source
from tests.bench.everybody import SIDES
from tests.bench.peers import get
from tests.bench.report import Sample, columns, rows, table
from tests.bench.sides import Side


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


def run_case(name: str, sides: Sequence[str], load: Load, options: Options, directory: Path) -> dict[str, str]:
    """Every side is started, takes its turn in each round, and is ended; prints the table.

    Returns what each of them did, in words.
    """
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
        samples: Mapping[str, list[Sample]] = {label: [] for label in taking}
        deadline = time.monotonic() + options.case_seconds
        for number in range(options.rounds):
            if number and time.monotonic() > deadline:
                break
            # Another one begins each time: to come after a certain other may be a disadvantage.
            turn = number % len(taking)
            for label in taking[turn:] + taking[:turn]:
                side, state = started[label]
                samples[label].append(measure(side, name, load, source, state, pages))
        texts = {
            field.name: format_size(value) if field.name in {"size", "chunk", "mib", "small"} else value
            for field in dataclasses.fields(load)
            for value in [getattr(load, field.name)]
        }
        print(f"\n### {name}: {case.title.format(**texts)}\n")
        print(table(columns(samples), rows(samples, case.unit)))
        sys.stdout.flush()
        return {label: str(side.does) for label, (side, _) in started.items()}


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says."""

    rounds: int
    durability: str
    case_seconds: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the cases asked for and prints what came out."""
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
        "--case-seconds", type=float, default=60.0, help="a case that took longer begins no further round (60)"
    )
    parser.add_argument("--directory", type=Path, help="where files go, on the disk to measure (the system's own)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, and nothing else")
    given = parser.parse_args(arguments)
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
        print("\n".join(machine.describe(directory)))
        print(f"rounds: {options.rounds}; durability: {options.durability} for every side but the peers")
        if given.quick:
            print("QUICK: sizes too small to mean anything")
        begun = time.monotonic()
        failed = False
        did: dict[str, dict[str, list[str]]] = {}
        sides = [side for side in SIDES if not given.side or side in given.side]
        for side in [side for side in sides if SIDES[side].missing()]:
            print(f"{side}: left out: {SIDES[side].missing()}")
            sides.remove(side)
        for case in given.case or CASES:
            if why := CASES[case].missing():
                print(f"\n### {case}: left out: {why}")
            elif any(case in SIDES[side].CASES for side in sides):
                try:
                    words_of = run_case(case, sides, load, options, directory)
                except (AssertionError, OSError) as error:
                    # the other cases are worth having
                    failed = True
                    print(f"\n### {case}: FAILED: {error}")
                    continue
                for label, words in words_of.items():
                    did.setdefault(label, {}).setdefault(words, []).append(case)
        print("\n### What they did\n")
        for label, ways in did.items():
            for words, where in ways.items():
                print(f"- {label} ({', '.join(where)}): {words}")
        print(f"\ntook {time.monotonic() - begun:.0f} s")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
