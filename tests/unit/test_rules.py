"""Every rule of the tus behaviour list has a test that bears its number, and no test an unknown one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
_NAME = re.compile(r"test_T_([0-9A-Za-z]+)(?:_|$)")

#: the rules by section; an id is the section and one more digit or letter
RULES = frozenset(
    f"{section}{last}"
    for section, lasts in {
        "000": "abcdefg",
        "00": "1234567",
        "01": "012345",
        "02": "0123456789ABCD",
        "03": "0123456789ABCDE",
        "04": "0123",
        "05": "0123456789ABCDEF",
        "06": "012345678",
        "07": "012345678",
        "08": "012345678",
        "09": "0123456",
        "0A": "0123456789A",
        "0B": "012345",
        "0C": "0123456789ABCDEFG",
        "0D": "0123456",
        "0E": "0123",
    }.items()
    for last in lasts
)


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@cache
def _tests() -> dict[str, str]:
    """Names of tests that begin like a rule's, and where each stands."""
    found: dict[str, str] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for function in _functions(ast.parse(path.read_text("utf-8"))):
            if function.name.startswith("test_T_"):
                found[function.name] = path.name
    return found


def _rule(name: str) -> str | None:
    match = _NAME.match(name)
    return match[1] if match else None


@pytest.mark.parametrize("rule", sorted(RULES))
def test_rule_has_a_test(rule: str) -> None:
    """A test is named after the rule."""
    assert rule in {_rule(name) for name in _tests()}, f"write test_T_{rule}_..."


def test_no_test_of_an_unknown_rule() -> None:
    """Every test that is named like a rule's is named after a rule that exists."""
    assert {name: path for name, path in _tests().items() if _rule(name) not in RULES} == {}
