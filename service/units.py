"""Sizes and durations as people write them: `4GiB`, `8 MiB`, `1KiB/s`, `24h`, `1h30m`.

Sizes are bytes and durations are whole seconds. `iB` units are powers of 1024, `B` units powers of
1000. A bare `4G` is refused: readers disagree on which of the two it means.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

_BINARY: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_DECIMAL: Final = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE_UNITS: Final = {unit.lower(): count for unit, count in (_BINARY | _DECIMAL).items()}
_DURATION_UNITS: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}

# size = number [ *SP unit ]; number = 1*15DIGIT [ "." 1*9DIGIT ]
_SIZE: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)")
# duration = 1*DIGIT / 1*( number ("d" / "h" / "m" / "s") )
_STEP: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([dhms])")
_DURATION: Final = re.compile(rf"(?:{_STEP.pattern}\s*)+")


def parse_size(text: str | int) -> int:
    """Bytes. Raises ValueError that says what would be right."""
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    right = "write bytes, or a number with KiB, MiB, GiB, TiB, kB, MB, GB or TB, as in 4GiB"
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"{str(text)[:40]!r} is not a size; {right}")
    number, unit = match.groups()
    factor = _SIZE_UNITS.get(unit.lower() or "b")
    if factor is None:
        raise ValueError(f"{unit[:10]!r} is not a unit of size; {right}")
    size = Decimal(number) * factor
    if size != int(size):
        raise ValueError(f"{text!r} is not a whole number of bytes; {right}")
    return int(size)


def parse_rate(text: str | int) -> int:
    """Bytes per second: a size, with or without `/s`. Raises ValueError."""
    return parse_size(text.strip().removesuffix("/s") if isinstance(text, str) else text)


def parse_duration(text: str | int) -> int:
    """Seconds. Raises ValueError that says what would be right."""
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    plain = str(text).strip()
    if re.fullmatch(r"[0-9]{1,15}", plain):
        return int(plain)
    right = "write seconds, or numbers with d, h, m or s, as in 90s, 1h30m or 7d"
    if _DURATION.fullmatch(plain) is None:
        raise ValueError(f"{plain[:40]!r} is not a duration; {right}")
    seconds = sum(Decimal(number) * _DURATION_UNITS[unit] for number, unit in _STEP.findall(plain))
    if seconds != int(seconds):
        raise ValueError(f"{plain!r} is not a whole number of seconds; {right}")
    return int(seconds)


def format_size(size: int) -> str:
    """Short, in the largest fitting binary unit: exact where it divides, else one decimal."""
    unit, factor = max(((u, f) for u, f in _BINARY.items() if f <= size), key=lambda row: row[1], default=("B", 1))
    return f"{size // factor}{unit}" if size % factor == 0 else f"{size / factor:.1f}{unit}"


def format_duration(seconds: int) -> str:
    """Exact: `90m` is `1h30m`, and `parse_duration` reads it back."""
    steps = []
    for unit, length in _DURATION_UNITS.items():
        count, seconds = divmod(seconds, length)
        if count:
            steps.append(f"{count}{unit}")
    return "".join(steps) or "0s"
