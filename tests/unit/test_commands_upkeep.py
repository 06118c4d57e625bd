"""`gc`, `fsck` and `verify`: pace, progress and words, without any store."""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest
from click.testing import CliRunner
from rich.progress import Progress

from service.cli import COMMANDS
from service.clock import new_file_id, new_upload_id
from service.commands import RATE, WrongArgument
from service.commands.fsck import _ADVICE, line_of
from service.commands.gc import Tally, _line
from service.commands.verify import Report, verify
from service.due import Removal
from service.fsck import Finding, Word
from service.hashing import manifest
from service.janitor import Kind
from service.model import Block, File
from service.settings import Settings, env_name
from service.verifying import Damage, Pace, Verdict
from tests.e2e.process import ROOT

MIB = 2**20
LOST = Damage(0, 5, "missing")


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        self.at = 100.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += seconds


def file_of(size: int) -> File:
    blocks = [Block(number, bytes(16)) for number in range(-(-size // MIB))]
    upload_id = new_upload_id()
    return File(new_file_id(), upload_id, upload_id, manifest(blocks, size, MIB), 0.0)


# --- pace -----------------------------------------------------------------------------------------


async def test_bytes_pass_at_the_rate() -> None:
    """Whatever the sizes of the pieces, the time is that of their sum."""
    clock = Clock()
    pace = Pace(10 * MIB, clock, clock.sleep)
    for size in (MIB, 4 * MIB, 5 * MIB):
        await pace.passed(size)
    assert clock.at == pytest.approx(101)


async def test_time_that_reading_took_is_not_waited_for_again() -> None:
    """A store that takes half of the time is waited for the other half."""
    clock = Clock()
    pace = Pace(MIB, clock, clock.sleep)
    await pace.passed(MIB)
    clock.at += 0.5
    await pace.passed(MIB)
    assert clock.slept == pytest.approx([1, 0.5])


async def test_time_that_was_not_used_is_not_caught_up_with() -> None:
    """After bytes that took an hour to come the rate is kept as before."""
    clock = Clock()
    pace = Pace(MIB, clock, clock.sleep)
    await pace.passed(MIB)
    clock.at += 3600
    for _ in range(3):
        await pace.passed(MIB)
    assert clock.slept == pytest.approx([1, 1, 1])


async def test_without_a_rate_nothing_waits() -> None:
    """Bytes pass as they come."""
    clock = Clock()
    await Pace(None, clock, clock.sleep).passed(2**40)
    assert clock.slept == []


@pytest.mark.parametrize(
    ("text", "rate"),
    [("200MiB/s", 200 * MIB), ("200 MiB/s", 200 * MIB), ("1MB/s", 10**6), ("1.5KiB/s", 1536), ("7", 7)],
)
def test_rates_are_read(text: str, rate: int) -> None:
    """As sizes, with or without `/s`."""
    assert RATE.convert(text, None, None) == rate


@pytest.mark.parametrize("text", ["200M/s", "fast", "1MiB/m", "-1", "1MiB/s/s", ""])
def test_other_rates_are_refused(text: str) -> None:
    """In one line that says what would be right."""
    with pytest.raises(WrongArgument, match="write bytes, or a number with KiB"):
        RATE.convert(text, None, None)


# --- progress -------------------------------------------------------------------------------------


def report_of(clock: Clock, said: list[str]) -> Report:
    return Report(Progress(disable=True), say=said.append, monotonic=clock.monotonic)


def test_without_a_terminal_a_line_tells_now_and_then(capsys: Any) -> None:
    """Every half a minute while bytes are read: how far it is, and of how much."""
    clock, said = Clock(), list[str]()
    report = report_of(clock, said)
    report.expect(2, 64 * MIB)
    for _ in range(64):
        report.read(MIB)
        clock.at += 1.5
    report.judged(Verdict(file_of(64 * MIB)))
    assert said == [f"verified 0 files, {done}MiB of 2, 64MiB" for done in (21, 41, 61)]
    assert str(report) == "1 files, 64MiB read: 0 corrupt"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("verdicts", "code", "last"),
    [
        ([Verdict(file_of(5))], 0, "0 corrupt"),
        ([Verdict(file_of(5)), Verdict(file_of(5), [LOST])], 1, "1 corrupt"),
        ([Verdict(file_of(5), unread="away")], 2, "0 corrupt, 1 unchecked"),
        (
            [Verdict(file_of(5), [Damage(0, 5, "missing")]), Verdict(file_of(5), unread="away")],
            2,
            "1 corrupt, 1 unchecked",
        ),
    ],
)
def test_the_exit_code_tells_the_worst(verdicts: list[Verdict], code: int, last: str) -> None:
    """0 all right, 1 damage, 2 where not all could be read, whatever else was found."""
    report = report_of(Clock(), [])
    for verdict in verdicts:
        report.judged(verdict)
    assert report.code == code
    assert str(report).endswith(f" read: {last}")


def test_damage_is_a_line_for_each_range(capsys: Any) -> None:
    """With id, range, size and what is wrong."""
    file = file_of(3 * MIB)
    report_of(Clock(), []).judged(
        Verdict(file, [Damage(0, MIB, "missing"), Damage(2 * MIB, 3 * MIB, "not what was stored")])
    )
    assert capsys.readouterr().out.splitlines() == [
        f"corrupt {file.id}: bytes [0, 1048576) of 3145728: missing",
        f"corrupt {file.id}: bytes [2097152, 3145728) of 3145728: not what was stored",
    ]


# --- words ----------------------------------------------------------------------------------------


def test_a_tally_has_a_line_for_each_kind() -> None:
    """Also for those of which there was nothing."""
    tally = Tally()
    tally.add("expired-upload", 1, MIB)
    tally.add("expired-upload", 2, 2 * MIB)
    tally.add("tombstone", 40, 0)
    assert tally.lines() == [
        "expired-upload          3       3MiB",
        "expired-file            0         0B",
        "tombstone              40         0B",
        "leftover                0         0B",
        "orphan                  0         0B",
    ]


def test_a6_the_id_of_a_link_is_not_printed() -> None:
    """A6: it is part of a token, so a short hash stands for it; other ids are told as they are."""
    assert "secret" not in _line(Removal("tombstone", "secret", what="link"))
    assert _line(Removal("orphan", "u_x", 7)) == "orphan          u_x  7 bytes"


@pytest.mark.parametrize("word", Word)
def test_each_finding_says_what_to_do(word: Word) -> None:
    """One line: word, id, what was found, and what to do about it."""
    line = line_of(Finding(word, "f_x", "5 bytes are recorded, 3 are held"))
    assert line == f"{word} f_x: 5 bytes are recorded, 3 are held -> {_ADVICE[word]}"
    assert "\n" not in line


PAGE = (ROOT / "docs" / "operating.md").read_text("utf-8")


@pytest.mark.parametrize("word", [*Word, *get_args(Kind), "corrupt", "unchecked"])
def test_the_page_explains_each_word(word: str) -> None:
    """docs/operating.md has a row for everything that the commands print first in a line."""
    assert re.search(rf"^\| `{word}` \|", PAGE, re.MULTILINE)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\bATTACHD_[A-Z_]+\b", PAGE))))
def test_the_page_names_settings_that_there_are(name: str) -> None:
    """Each is one of the table of settings."""
    assert name in {env_name(setting) for setting in Settings.model_fields}


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`attachd ([a-z-]+)", PAGE))))
def test_the_page_names_commands_that_there_are(command: str) -> None:
    """Each can be called."""
    assert command in COMMANDS


def test_a_rate_of_nothing_is_refused() -> None:
    """It would never end."""
    done = CliRunner().invoke(verify, ["--all", "--rate", "0B/s"])
    assert done.exit_code == 2
    assert "--rate" in done.output
