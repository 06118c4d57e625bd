"""Traces of a service that is several processes: each sends its own, and a stop loses none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.process import ServiceProcess
from tests.e2e.working import ask, create
from tests.web.collector import collector

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs attachd[otel]")


def test_workers_send_their_spans(tmp_path: Path) -> None:
    """Every request of two workers has its span at the collector after a stop, under the names of both processes."""
    with collector() as found:
        with ServiceProcess(tmp_path, ATTACHD_WORKERS="2", ATTACHD_OTLP_ENDPOINT=found.url) as service:
            upload = create(service, 5)
            for _ in range(40):
                assert ask(service, "HEAD", upload).status == 200
            assert service.terminate() == 0
        assert len(found.named("POST /files")) == 1
        assert len(found.named("HEAD /files/{tail}")) == 40
        assert len({each["service.instance.id"] for each in found.resources}) == 2
        assert upload.rpartition("/")[2] not in found.text


def test_a_collector_that_hangs_holds_up_no_stop(tmp_path: Path) -> None:
    """SIGTERM ends with 0 while nobody takes the spans, and their loss is in the log without a token."""
    with collector() as found:
        gone = found.url
    with ServiceProcess(tmp_path, ATTACHD_OTLP_ENDPOINT=gone) as service:
        assert ask(service, "HEAD", create(service, 5)).status == 200
        assert service.terminate() == 0
