"""docs/rules.md explains the rules that comments, docstrings and tests name, and no others."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from tests.unit.test_rules import RULES

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs" / "rules.md"
#: the letters of the lessons' sections; the one that is left out is a product's name
_LESSON: Final = r"(?!S3)[ACDEGKLMORSV][1-9]"
_IDS: Final = re.compile(rf"\bT-0[0-9A-Za-z]+|\bA-[0-9]{{2}}[a-z]?\b|(?<![-%\w]){_LESSON}\b")
_INVARIANT: Final = re.compile(r"[Ii]nvariant\s+(\d+)")
_SECTION: Final = re.compile(r"[Cc]ontract(?:'s|,)?\s+section\s+(\d+)(?:,\s+(rule\s+\d+))?(?:;\s+section\s+(\d+))?")
_NAMED: Final = re.compile(rf"test_({_LESSON})_", re.IGNORECASE)
_ROW: Final = re.compile(
    r"^\| (T-\w+|A-\w+|[A-Z]\d|invariant \d+|section \d+(?:, rule \d+)?) \|.*\S \|$",
    re.MULTILINE,
)
#: these stand on the page as a whole, cited or not
_WHOLE: Final = re.compile(r"T-|section ")


def _modules(folder: str) -> list[Path]:
    return [path for path in sorted((ROOT / folder).rglob("*.py")) if "node_modules" not in path.parts]


def _words(path: Path) -> Iterator[str]:
    """The comments and docstrings of a module, and the names of its tests."""
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.string
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


def _ids(words: str) -> Iterator[str]:
    """The rules that a comment, a docstring or a name cites."""
    yield from _IDS.findall(words)
    for number in _INVARIANT.findall(words):
        yield f"invariant {number}"
    for section, rule, other in _SECTION.findall(words):
        yield f"section {section}"
        if rule:
            yield f"section {section}, {' '.join(rule.split())}"
        if other:
            yield f"section {other}"
    if name := _NAMED.match(words):
        yield name[1].upper()


@cache
def _cited() -> dict[str, str]:
    """Every rule that is cited, with the first file that does."""
    found: dict[str, str] = {}
    for path in [*_modules("service"), *_modules("tests")]:
        for words in _words(path):
            for rule in _ids(words):
                found.setdefault(rule, str(path.relative_to(ROOT)))
    return found


def _rows() -> list[str]:
    return _ROW.findall(PAGE.read_text("utf-8"))


def test_every_rule_that_is_cited_stands_on_the_page() -> None:
    """Whoever meets a rule's id in the code finds it in docs/rules.md."""
    missing = [f"{rule} ({place})" for rule, place in sorted(_cited().items()) if rule not in _rows()]
    assert not missing, f"docs/rules.md has no row for what is cited: {', '.join(missing)}"


def test_every_rule_on_the_page_is_cited() -> None:
    """The page keeps nothing that the code no longer names; the tus rules and the contract stand there whole."""
    idle = [rule for rule in _rows() if not _WHOLE.match(rule) and rule not in _cited()]
    assert not idle, f"nothing in service/ or tests/ cites these rows of docs/rules.md: {', '.join(idle)}"


def test_the_tus_rules_on_the_page_are_those_there_are() -> None:
    """The page has each rule that must have a test, and no other."""
    assert {rule.removeprefix("T-") for rule in _rows() if rule.startswith("T-")} == RULES


def test_no_rule_stands_there_twice() -> None:
    """An id has one row."""
    rows = _rows()
    assert [rule for rule in sorted(set(rows)) if rows.count(rule) > 1] == []


def test_every_row_is_read() -> None:
    """A row of a table is one of a rule, or the table's head: nothing is overlooked for its spelling."""
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("|")]
    heads = sum(line.startswith("|---") for line in lines)
    assert len(lines) == len(_rows()) + 2 * heads, "a row of docs/rules.md does not begin with a rule's id"


def test_tests_named_on_the_page_exist() -> None:
    """A name is the beginning of a test's name."""
    names = {
        node.name
        for path in _modules("tests")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    named = re.findall(r"`(test_\w+)`", PAGE.read_text("utf-8"))
    absent = [name for name in named if not any(other.startswith(name) for other in names)]
    assert not absent, f"docs/rules.md names tests that do not exist: {', '.join(absent)}"


def test_links_of_the_page_lead_somewhere() -> None:
    """Every relative link is that of a file, and the README leads to the page."""
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGE.read_text("utf-8")):
        assert (PAGE.parent / target).is_file(), target
    assert "(docs/rules.md)" in (ROOT / "README.md").read_text("utf-8")
