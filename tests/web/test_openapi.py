"""The description at `/openapi.json` is true: requests made from it are answered as it says."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from openapi_spec_validator import validate
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service import __version__
from service.control_routes import ROUTES
from service.openapi import document
from service.protocol.problems import KINDS
from service.web.app import make_app
from service.web.cors import Cors
from tests.web.backend import Backend
from tests.web.harness import Site, site

DOCUMENT: Final = document(__version__)
METHODS: Final = ("get", "put", "post", "delete", "patch", "head", "options")
OPERATIONS: Final = {
    (method, path): path_item[method]
    for path, path_item in DOCUMENT["paths"].items()
    for method in METHODS
    if method in path_item
}
CHECKS: Final = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


async def test_the_description_is_served_to_everybody(here: Site) -> None:
    """Without a token; it is OpenAPI 3.1 by the letter of its own schema."""
    answer = await here.ask("GET", "/openapi.json")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    assert answer.json == json.loads(json.dumps(DOCUMENT))
    validate(answer.json)
    assert answer.json["openapi"] == "3.1.0"
    assert (await here.ask("POST", "/openapi.json")).status == 405


def test_every_route_that_is_served_is_described() -> None:
    """Each address of the public listener, with its methods, but for HEAD and OPTIONS that each of them has."""
    app = make_app(cast(Any, None), Cors(()), cast(Any, None))
    served = set()
    for resource in app.router.resources():
        path = resource.canonical
        for route in resource:
            if route.method not in ("*", "HEAD", "OPTIONS") and path != "/{elsewhere}":
                served.add((route.method.lower(), path))
    assert {(method, path) for method, path in served if (method, path) not in OPERATIONS} == set()
    assert {(route.method.lower(), route.path) for route in ROUTES} <= served


def test_problems_that_are_named_exist() -> None:
    """Every slug in the description is one of the table, under its own status."""
    for operation in OPERATIONS.values():
        for status, answer in operation["responses"].items():
            for slug in re.findall(r"`([a-z]+(?:-[a-z]+)+)`:", answer["description"]):
                assert str(KINDS[slug].status) == status


@schemathesis.serializer("application/offset+octet-stream", "*/*")
def _octets(_context: object, value: object) -> bytes:
    """What is uploaded is bytes, whatever the description's examples are made of."""
    return value if isinstance(value, bytes) else str(value).encode()


class Served:
    """A service in a thread, with a few files, for requests that wait for their answers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ready, self._over = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self.url = self.token = ""
        self.files: list[str] = []

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with site(self._folder, public_url="http://files.test") as here:
            backend = Backend(here, claims={"audience": "http://files.test"})
            self.url, self.token = here.base, backend.token()
            self.files = [(await backend.store(ref="r", owner="u1"))["file_id"] for _ in range(3)]
            self._ready.set()
            await self._over.wait()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(30)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One for all requests of the module: what an earlier one changed is no reason for a wrong answer."""
    with Served(tmp_path_factory.mktemp("openapi")) as running:
        yield running


def _takes_nothing(which: tuple[str, str]) -> bool:
    """Whether a request for it cannot be wrong."""
    return which in (("get", "/openapi.json"), ("options", "/files"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "mode"),
    [
        pytest.param(which, mode, id=f"{' '.join(which)}-{mode.value}")
        for which in sorted(OPERATIONS)
        for mode in GenerationMode
        if mode is GenerationMode.POSITIVE or not _takes_nothing(which)
    ],
)
def test_requests_made_from_the_description_are_answered_as_it_says(
    served: Served, which: tuple[str, str], mode: GenerationMode
) -> None:
    """No 500, no status and no body that is not described: for requests as they should be and as they should not."""
    method, path = which
    schema = schemathesis.openapi.from_dict(json.loads(json.dumps(DOCUMENT)))
    operation = schema[path][method.upper()]
    headers = {"Authorization": f"Bearer {served.token}"} if path.startswith("/v1/") else {}
    statuses: set[int] = set()

    @settings(max_examples=25, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        if "file_id" in (case.path_parameters or {}) and len(statuses) < 3:
            case.path_parameters["file_id"] = served.files[0]
        if case.query is not None:
            # nobody has twenty seconds for each example
            case.query.pop("wait", None)
        response = case.call(base_url=served.url, headers=headers)
        statuses.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    run()
    assert statuses
