"""The benchmark works; how fast anything is, no test says."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.cases import Load
from tests.bench.client import Answer, Unexpected
from tests.bench.limits import compilable
from tests.bench.peers import PEERS
from tests.bench.report import Row, Sample, by_size, rows, summary
from tests.conftest import require
from tests.e2e.process import ROOT

SAMPLE = Sample(seconds=1.0, amount=100, cpu_seconds=0.5, client_seconds=0.1, peak_bytes=10**6, latencies=(), warm=True)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are read from /proc")


def still_running(directory: Path) -> list[str]:
    """Processes whose command line or environment names the directory."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(directory).encode() in told:
            found.append(process.name)
    return found


def test_a_quick_run_measures_every_side_and_leaves_nothing(tmp_path: Path) -> None:
    """One case prints a row for each side, ends every process it started and removes its files."""
    ours = [label for label in labels(quick("one", tmp_path)) if label not in PEERS]
    in_c = [] if compilable() else ["limit-c"]
    assert ours == ["side", "attachd", "receive", "write", *in_c, "limit", "naive"]
    assert still_running(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def labels(lines: list[str]) -> list[str]:
    """The first cell of each line of a table."""
    return [line.split("|")[1].strip() for line in lines if line.startswith("| ")]


def quick(case: str, directory: Path, *options: str, **environment: str) -> list[str]:
    """What a quick run of the case prints; it has ended well."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--quick", "--case", case, "--directory", str(directory), *options],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.splitlines()


@pytest.mark.parametrize(
    ("case", "second"),
    [("s3-put", "bare-boto3"), ("s3-get", "bare-boto3"), ("s3-slow-neighbours", "attachd-s3-crowded")],
)
def test_a_case_on_a_bucket_measures_both_sides_and_leaves_nothing(tmp_path: Path, case: str, second: str) -> None:
    """Where there is a store each side of the case has a row, and its store is ended with it."""
    require("s3")
    ours = [label for label in labels(quick(case, tmp_path)) if label not in PEERS]
    assert ours == ["side", "attachd-s3", second]
    assert still_running(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_case_on_a_bucket_is_left_out_without_a_store(tmp_path: Path) -> None:
    """The run says so and ends well."""
    lines = quick("s3-put", tmp_path, ATTACHD_TEST_VERSITYGW=str(tmp_path / "none"))
    assert [line for line in lines if line.startswith("### s3-put: left out")]


@pytest.mark.parametrize(
    ("case", "side"),
    [("eight", "attachd-2"), ("readers", "attachd-2"), ("mib-files", "naive"), ("open", "naive"), ("head", "naive")],
)
def test_a_case_of_many_at_once_measures_its_sides(tmp_path: Path, case: str, side: str) -> None:
    """Each has a row with figures."""
    assert labels(quick(case, tmp_path, "--side", "attachd", "--side", side)) == ["side", "attachd", side]
    assert still_running(tmp_path) == []


def test_sizes_are_compared_in_one_run(tmp_path: Path) -> None:
    """Each size has a table, and one more says what a byte costs at each; the summary has a line for each, too."""
    lines = quick("sizes", tmp_path, "--side", "attachd", "--summary")
    assert len([line for line in lines if line.startswith("### sizes: ")]) == len(Load.quick().sizes) + 1
    assert labels(lines).count("attachd") == len(Load.quick().sizes) + 1
    assert [line for line in lines if line.startswith("attachd, server CPU per GiB: 1MiB to 4MiB apart: ")]
    assert len([label for label in labels(lines) if label.startswith("3MiB as uploads of ")]) == len(Load.quick().sizes)
    assert list(tmp_path.iterdir()) == []


def test_a_peer_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    """The run says so and why, and is made without it."""
    nothing, files = tmp_path / "nothing", tmp_path / "files"
    nothing.mkdir()
    files.mkdir()
    lines = quick("one", files, ATTACHD_BENCH_TUSD="", ATTACHD_BENCH_CACHE=str(nothing), PATH=str(nothing))
    left_out = {line.partition(": left out: there is no ")[0] for line in lines if ": left out: there is no " in line}
    assert left_out == {*PEERS, "limit-c"}
    assert labels(lines) == ["side", "attachd", "receive", "write", "limit", "naive"]


def test_a_ratio_compares_rounds_not_medians() -> None:
    """A machine that slows down from round to round leaves the ratio of two sides as it is."""
    slowing = [replace(SAMPLE, seconds=seconds) for seconds in (1.0, 2.0, 9.0)]
    half = [replace(sample, seconds=2 * sample.seconds) for sample in slowing]
    first, second = rows({"attachd": slowing, "other": half}, "requests")
    assert (first[3], second[3]) == ("1", "2.00")


def test_a_cold_round_is_left_out() -> None:
    """A round in which pages were cold changes neither the median nor the ratio, and is told."""
    own = [SAMPLE, replace(SAMPLE, seconds=50.0, warm=False)]
    first, second = rows({"attachd": own, "other": [SAMPLE, SAMPLE]}, "requests")
    assert (first[1], first[-1], second[3]) == ("100/s", "1 of 2", "1.00")


def test_rounds_that_were_all_cold_are_shown_as_such() -> None:
    """Where no round was warm the figures are those of the cold ones, marked."""
    (row,) = rows({"attachd": [replace(SAMPLE, warm=False)]}, "requests")
    assert (row[1], row[-1]) == ("100/s", "1, all cold")


def costs(*seconds: float) -> list[Sample]:
    """A round for each, in which the side computed that long."""
    return [replace(SAMPLE, cpu_seconds=each) for each in seconds]


def test_sizes_are_compared_within_a_round() -> None:
    """A machine that slows down from round to round moves no two sizes apart, and the smallest is not compared."""
    slowing = {"1MiB": costs(9.0, 9.0, 9.0), "16MiB": costs(1.0, 2.0, 9.0), "4GiB": costs(1.2, 2.4, 10.8)}
    header, lines = by_size({size: {"attachd": samples} for size, samples in slowing.items()})
    assert (header[-1], lines[0][-1]) == ("16MiB to 4GiB apart", "20%")


def test_the_summary_holds_one_side_against_the_others() -> None:
    """Throughput and processor time stand over those of each other, one on a bucket beside the same on a disk."""
    disk = Row("one", "requests", "attachd", {"attachd": [SAMPLE], "tusd": [replace(SAMPLE, seconds=2.0)]})
    bucket = Row("s3", "requests", "attachd-s3", {"attachd-s3": [SAMPLE], "tusd-s3": costs(2.0)})
    header, lines = summary([disk, bucket], ["rustus", "tusd", "tusd-s3"])
    assert header == ("case", "side", "throughput", "server CPU", "peak memory", "tusd")
    assert [line[-1] for line in lines] == ["2.00 / 1.00", "1.00 / 0.25"]
    assert lines[0][:5] == ("one", "attachd", "100/s", "5.000 ms", "1 MB")


def test_a_side_that_keeps_less_than_it_was_sent_is_not_measured() -> None:
    """An answer with another offset than expected ends the run."""
    answer = Answer(201, b"HTTP/1.1 201 Created\r\nUpload-Offset: 0\r\n")
    assert answer.expect(201, offset=0) is answer
    with pytest.raises(Unexpected):
        answer.expect(201, offset=65536)
