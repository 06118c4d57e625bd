"""The benchmark works; how fast anything is, no test says."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.client import Answer, Unexpected
from tests.bench.peers import CACHE, PEERS
from tests.bench.report import Sample, rows
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
    lines = [line.split("|")[1].strip() for line in quick("one", tmp_path) if line.startswith("| ")]
    assert [line for line in lines if line not in PEERS] == ["side", "attachd", "limit", "naive"]
    assert still_running(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def quick(case: str, directory: Path, **environment: str) -> list[str]:
    """What a quick run of the case prints; it has ended well."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--quick", "--case", case, "--directory", str(directory)],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@pytest.mark.parametrize(
    ("case", "second"),
    [("s3-put", "bare-boto3"), ("s3-get", "bare-boto3"), ("s3-slow-neighbours", "attachd-s3-crowded")],
)
def test_a_case_on_a_bucket_measures_both_sides_and_leaves_nothing(tmp_path: Path, case: str, second: str) -> None:
    """Where there is a store each side of the case has a row, and its store is ended with it."""
    require("s3")
    lines = [line.split("|")[1].strip() for line in quick(case, tmp_path) if line.startswith("| ")]
    assert [line for line in lines if line not in PEERS] == ["side", "attachd-s3", second]
    assert still_running(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_case_on_a_bucket_is_left_out_without_a_store(tmp_path: Path) -> None:
    """The run says so and ends well."""
    lines = quick("s3-put", tmp_path, ATTACHD_TEST_VERSITYGW=str(tmp_path / "none"))
    assert [line for line in lines if line.startswith("### s3-put: left out")]


@pytest.mark.parametrize(("case", "sides"), [("eight", "attachd-2"), ("readers", "attachd-2"), ("mib-files", "naive")])
def test_a_case_of_many_at_once_measures_its_sides(tmp_path: Path, case: str, sides: str) -> None:
    """Each has a row with figures."""
    rows = [line for line in quick(case, tmp_path) if line.startswith(f"| {sides} ")]
    assert len(rows) == 1
    assert still_running(tmp_path) == []


def test_a_peer_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    """The run says so and why, and is made without it."""
    lines = quick("one", tmp_path, ATTACHD_BENCH_TUSD="", PATH=str(tmp_path))
    if not (CACHE / "tusd").exists():
        assert [line for line in lines if line.startswith("tusd: left out: there is no tusd")]


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


def test_a_side_that_keeps_less_than_it_was_sent_is_not_measured() -> None:
    """An answer with another offset than expected ends the run."""
    answer = Answer(201, b"HTTP/1.1 201 Created\r\nUpload-Offset: 0\r\n")
    assert answer.expect(201, offset=0) is answer
    with pytest.raises(Unexpected):
        answer.expect(201, offset=65536)
