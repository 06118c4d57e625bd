"""Sizes and durations: what people write, and what comes back."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.units import format_duration, format_size, parse_duration, parse_rate, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("512B", 512),
        ("1KiB", 1024),
        ("8 MiB", 8 << 20),
        ("4GiB", 4_294_967_296),
        ("4GB", 4_000_000_000),
        ("4gib", 4_294_967_296),
        ("1.5MiB", 1_572_864),
        ("2TiB", 2 << 40),
        (" 10kB ", 10_000),
        (77, 77),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    """iB units are powers of 1024, B units powers of 1000, bare numbers bytes."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "4G", "four", "-1", "1.5B", "1e9", "4 Gi B", "GiB", "4PiB", "٤GiB", "1" * 16, "0.1kiB", -1, True]
)
def test_wrong_sizes(text: str | int) -> None:
    """What is not surely a whole number of bytes is refused with an example of what is right."""
    with pytest.raises(ValueError, match="4GiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1h", 3600), ("7d", 604_800), ("1h30m", 5400), ("1.5h", 5400), ("0s", 0), (60, 60)],
)
def test_durations(text: str | int, seconds: int) -> None:
    """A duration is seconds, or numbers with units that add up."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "1w", "1H", "-5s", "0.5s", "1h 30", "1ms", "1" * 16 + "s", -1, True])
def test_wrong_durations(text: str | int) -> None:
    """What is not surely a whole number of seconds is refused with an example of what is right."""
    with pytest.raises(ValueError, match="1h30m"):
        parse_duration(text)


def test_a_rate_is_a_size_per_second() -> None:
    """`/s` changes nothing in the number."""
    assert parse_rate("1KiB/s") == parse_rate("1KiB") == parse_rate(1024) == 1024


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0B"), (1, "1B"), (1000, "1000B"), (1536, "1.5KiB"), (8 << 20, "8MiB"), (4 << 30, "4GiB")]
)
def test_shown_sizes(size: int, text: str) -> None:
    """A size is shown in the largest unit that fits."""
    assert format_size(size) == text


@given(st.integers(0, 10**12))
def test_shown_durations_read_back(seconds: int) -> None:
    """Every duration reads back from how it is shown."""
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.text(max_size=40))
def test_any_text_is_a_value_or_a_value_error(text: str) -> None:
    """No text makes a parser fail in another way than ValueError."""
    for parse in (parse_size, parse_rate, parse_duration):
        with contextlib.suppress(ValueError):
            assert parse(text) >= 0
