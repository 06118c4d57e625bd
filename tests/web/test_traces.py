"""Traces: a span for each request, at a collector that listens here, and nothing at all where none is wanted."""

from __future__ import annotations

import io
import json
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.web.collector import collector, fields
from tests.web.harness import TUS, path_of, site

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs attachd[otel]")


PARENT = "4bf92f3577b34da6a3ce929d0e0e4736"


async def test_a_span_for_each_request(tmp_path: Path) -> None:
    """It is named by method and route, in the trace that the client named, with status and file, and no capability."""
    with collector() as found:
        async with site(tmp_path, otlp_endpoint=found.url) as here:
            link = here.link()
            answer = await here.post(5, link, traceparent=f"00-{PARENT}-00f067aa0ba902b7-01", tracestate="a=b")
            path = path_of(answer.headers["Location"])
            await here.patch(path, 0, b"hello")
            file_id = await here.file_id(path)
            assert await here.fetch(file_id) == b"hello"
            await here.ask("GET", f"/nowhere/{secrets.token_hex(4)}?{link.partition('?')[2]}")
            await here.ask("HEAD", f"{path}?{link.partition('?')[2]}", TUS)
        assert found.paths == {"/v1/traces"}
        assert found.resources[0]["service.name"] == "attachd"
        (created,) = found.named("POST /files")
        assert created.trace_id.hex() == PARENT
        assert created.parent_span_id.hex() == "00f067aa0ba902b7"
        assert fields(created.attributes)["http.response.status_code"] == 201
        (sent,) = found.named("PATCH /files/{tail}")
        told = fields(sent.attributes)
        assert (told["http.route"], told["http.request.method"]) == ("/files/{tail}", "PATCH")
        assert (told["attachd.received"], told["attachd.file_id"]) == (5, file_id)
        (lost,) = found.named("GET unknown")
        assert fields(lost.attributes)["attachd.reason"] == "not-found"
        assert found.named("GET /d/{file_id}")
        assert path.rpartition("/")[2] not in found.text
        assert "eyJ" not in found.text
        assert "sig" not in found.text


async def test_the_log_names_the_trace(tmp_path: Path, log: io.StringIO) -> None:
    """A record of the request has the id of its trace, also where the client named none or a malformed one."""
    with collector() as found:
        async with site(tmp_path, otlp_endpoint=found.url) as here:
            await here.ask("GET", "/openapi.json", {"traceparent": "00-zz-1-01"})
        told = [json.loads(line) for line in log.getvalue().splitlines() if "request_answered" in line]
        (span,) = found.named("GET /openapi.json")
        assert [each["trace_id"] for each in told] == [span.trace_id.hex()]


async def test_a_collector_that_is_gone_costs_nothing(tmp_path: Path) -> None:
    """Requests are answered as ever while nobody takes the spans, and the stop does not wait for it."""
    with collector() as found:
        gone = found.url
    async with site(tmp_path, otlp_endpoint=gone) as here:
        assert await here.fetch(await here.upload(b"hello")) == b"hello"
        began = time.monotonic()
    assert time.monotonic() - began < 5


async def test_a_method_that_nobody_knows_is_one_name(tmp_path: Path) -> None:
    """What a client makes up as a method names no span."""
    with collector() as found:
        async with site(tmp_path, otlp_endpoint=found.url) as here:
            line = await here.line()
            await line.send(b"PROPFIND /files HTTP/1.1\r\nHost: x\r\n\r\n")
            await line.answer()
        assert [span.name for span in found.spans] == ["_OTHER /files"]


def test_without_traces_nothing_is_imported_for_them() -> None:
    """The service as it comes has no tracer, and not one module of OpenTelemetry in memory."""
    program = "import sys, service.runtime; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


async def test_a_start_without_the_packages_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the extra is not installed the setting stops the start, by its name and with the command."""
    monkeypatch.setitem(sys.modules, "service.otlp", None)
    with pytest.raises(Exception, match=r"ATTACHD_OTLP_ENDPOINT.*attachd\[otel\]"):
        async with site(tmp_path, otlp_endpoint="http://127.0.0.1:4318"):
            raise AssertionError("it started")
