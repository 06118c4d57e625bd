"""Imports point down: every one in `service` is held against the tables below.

A wrong import fails with the reason. Imports for type checkers count as well: a name that is only
needed for a type still says who knows whom.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]

#: the longest prefix decides
LAYERS: Final = {
    "service": 0,
    "service.claims": 0,
    "service.endpoints": 0,
    "service.control_models": 0,
    "service.control_routes": 0,
    "service.hashing": 0,
    "service.keyset": 0,
    "service.links": 0,
    "service.model": 0,
    "service.openapi": 0,
    "service.protocol": 0,
    "service.setting_types": 0,
    "service.settings": 0,
    "service.sniffing": 0,
    "service.units": 0,
    "service.changes": 1,
    "service.clock": 1,
    "service.duties": 1,
    "service.events": 1,
    "service.leases": 1,
    "service.metadata.base": 1,
    "service.metadata.outbox": 1,
    "service.metadata.control": 1,
    "service.metrics": 1,
    "service.scanner": 1,
    "service.outward": 1,
    "service.tracing": 1,
    "service.storage": 1,
    "service.clamd": 2,
    "service.keyfile": 2,
    "service.otlp": 2,
    "service.metadata": 2,
    "service.webhooks": 2,
    "service.storage.filesystem": 2,
    "service.storage.parts": 0,
    "service.storage.s3": 2,
    "service.at_once": 3,
    "service.onward": 3,
    "service.carrying": 0,
    "service.claiming": 3,
    "service.delivery": 3,
    "service.control_files": 3,
    "service.downloads": 3,
    "service.due": 3,
    "service.erasing": 3,
    "service.feed": 3,
    "service.files": 3,
    "service.finishing": 3,
    "service.found": 3,
    "service.fsck": 3,
    "service.gate": 3,
    "service.hooks": 3,
    "service.janitor": 3,
    "service.lookup": 3,
    "service.minting": 3,
    "service.once": 3,
    "service.receiving": 3,
    "service.rechecking": 3,
    "service.room": 3,
    "service.scanning": 3,
    "service.revocations": 3,
    "service.settling": 3,
    "service.tasks": 3,
    "service.uploads": 3,
    "service.verifying": 3,
    "service.web": 4,
    "service.__main__": 5,
    "service.allocator": 5,
    "service.cli": 5,
    "service.commands": 5,
    "service.control_wiring": 5,
    "service.crashes": 5,
    "service.directory": 5,
    "service.listening": 5,
    "service.logs": 5,
    "service.runtime": 5,
    "service.upload_wiring": 5,
    "service.starting": 5,
    "service.stores": 5,
    "service.workers": 5,
}
NAMES: Final = ("pure", "port", "adapter", "use-case", "web", "wiring")
MAY_IMPORT: Final = {0: {0}, 1: {0, 1}, 2: {0, 1}, 3: {0, 1, 3}, 4: {0, 1, 3, 4}, 5: {0, 1, 2, 3, 4, 5}}
WHY: Final = {
    0: "what is pure can be tested without a world; hand it in as an argument",
    1: "a port says what is needed, not who provides it",
    2: "an adapter speaks to one third party and knows no other adapter and nobody above",
    3: "a use-case knows ports; which adapter stands behind one is decided in runtime",
    4: "a handler asks a use-case; what lies below may change without the edge",
    5: "",
}

#: who may import a third party; structlog is for every layer above the pure one
THIRD_PARTIES: Final = {
    "aiofiles": ("service.storage.filesystem",),
    "aiohttp": ("service.web", "service.webhooks", "service.listening"),
    "alembic": ("service.metadata",),
    "boto3": ("service.storage.s3",),
    "botocore": ("service.storage.s3",),
    "click": ("service.cli", "service.commands"),
    "cryptography": ("service.keyset", "service.keyfile"),
    "filetype": ("service.sniffing",),
    "google_crc32c": ("service.hashing",),
    "jwt": ("service.links", "service.keyset"),
    "opentelemetry": ("service.otlp",),
    "prometheus_client": ("service.metrics",),
    "pydantic": ("service.settings", "service.setting_types", "service.control_models"),
    "pydantic_core": ("service.settings", "service.setting_types"),
    "requests": ("service.commands",),
    "rich": ("service.cli", "service.commands"),
    "sqlalchemy": ("service.metadata",),
    "standardwebhooks": ("service.webhooks",),
    "structlog": ("service",),
    "tusclient": ("service.commands.put",),
    "mypy_boto3_s3": ("service.storage.s3",),
    "urllib3": ("service.commands", "service.storage.s3"),
    "uvloop": ("service.commands.serve", "service.workers.worker"),
    "xxhash": ("service.hashing", "service.commands"),
}
IMPURE: Final = frozenset({
    "asyncio", "fcntl", "logging", "os", "random", "secrets", "shutil", "socket", "structlog", "subprocess", "sys",
    "tempfile", "threading", "time",
})  # fmt: skip
READS_ENVIRONMENT: Final = ("service.cli", "service.__main__")


def _within(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def _longest(module: str) -> str | None:
    return max((name for name in LAYERS if _within(module, (name,))), key=len, default=None)


def _layer(module: str) -> int | None:
    name = _longest(module)
    # `service` itself is the package; a module of it that no other row names has no layer yet
    return None if name is None or (name == "service" and module != "service") else LAYERS[name]


def _imports(tree: ast.AST) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from service.metadata import base` names a module, `from service.model import Upload` does not
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                module = (ROOT / inner.replace(".", "/")).with_suffix(".py").exists() or inner in LAYERS
                found.append((node.lineno, inner if module and node.module.startswith("service") else node.module))
    return found


def _import_fault(module: str, layer: int, name: str) -> str | None:
    top = name.partition(".")[0]
    if top == "service":
        target = _layer(name)
        if target is None:
            return f"{name} is in no layer; add it to the table in {Path(__file__).name}"
        own_package = layer == target == 2 and _longest(module) == _longest(name)
        if target not in MAY_IMPORT[layer] and not own_package:
            return f"a {NAMES[layer]} module imports {name} ({NAMES[target]}): {WHY[layer]}"
        return None
    if layer == 0 and top in IMPURE:
        return f"a pure module imports {name}: {WHY[0]}"
    if top in sys.stdlib_module_names:
        return None
    if top not in THIRD_PARTIES:
        return f"{top} is in no table; say in {Path(__file__).name} who may import it"
    if not _within(module, THIRD_PARTIES[top]) or (
        LAYERS[_longest(module) or module] == 1 and module.startswith("service.metadata") and top != "structlog"
    ):
        return f"{top} is imported outside {', '.join(THIRD_PARTIES[top])}: one place speaks to each third party"
    return None


def _faults(module: str, source: str) -> list[str]:
    """What is wrong with the module, with line and reason."""
    layer = _layer(module)
    if layer is None:
        return [f"{module} is in no layer; add it to the table in {Path(__file__).name}"]
    tree = ast.parse(source)
    faults = []
    for line, name in _imports(tree):
        fault = _import_fault(module, layer, name)
        if fault:
            faults.append(f"{module}:{line}: {fault}")
    for node in ast.walk(tree):
        if layer == 0 and isinstance(node, ast.AsyncFunctionDef):
            faults.append(f"{module}:{node.lineno}: a pure module has an `async def`: {WHY[0]}")
        if not isinstance(node, ast.Attribute) or _within(module, READS_ENVIRONMENT):
            continue
        if node.attr in {"environ", "getenv"}:
            faults.append(f"{module}:{node.lineno}: the environment is read in cli only: settings are handed down")
    return faults


MODULES: Final = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "service").rglob("*.py"))
}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    """The module imports nothing above its layer, no third party of another's, and is pure if it must be."""
    faults = _faults(module, MODULES[module].read_text())
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize(
    ("module", "source", "word"),
    [
        ("service.model", "import time", "pure"),
        ("service.protocol.decide", "async def f(): ...", "async def"),
        ("service.protocol.decide", "from service.storage.base import Part", "port"),
        ("service.uploads", "from service.metadata.sql import SqlMetadata", "adapter"),
        ("service.uploads", "from aiohttp import web", "aiohttp"),
        ("service.metadata.base", "import sqlalchemy", "sqlalchemy"),
        ("service.metadata.sql", "from service.storage.filesystem import FileStorage", "adapter"),
        ("service.storage.filesystem", "import boto3", "boto3"),
        ("service.web.uploads", "from service.storage import filesystem", "adapter"),
        ("service.web.app", "import prometheus_client", "prometheus_client"),
        ("service.runtime", "import os\nos.environ['A']", "environment"),
        ("service.commands.get", "import tusclient", "tusclient"),
        ("service.runtime", "import leftpad", "leftpad"),
        ("service.brand_new", "", "no layer"),
    ],
)
def test_a_wrong_import_is_named_with_its_reason(module, source, word):
    """Each rule of the tables refuses what it should, and says which word of it was broken."""
    faults = _faults(module, source)
    assert len(faults) == 1
    assert word in faults[0]


def _tests() -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    return [
        (path.name, node)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]


def test_every_test_states_its_claim():
    """Every test has a docstring: the claim it holds the code to."""
    assert [f"{name}::{test.name}" for name, test in _tests() if not ast.get_docstring(test)] == []
