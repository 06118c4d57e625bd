"""deploy/prometheus: rules that Prometheus takes, about metrics that exist, that fire and do not fire."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.conftest import require
from tests.deploy.instruments import ROOT, faults
from tests.e2e.process import ServiceProcess

FOLDER: Final = ROOT / "deploy" / "prometheus"
TESTS: Final = sorted((FOLDER / "tests").glob("*.yaml"))


def promtool(*arguments: str, given: bytes | None = None) -> None:
    """It is content, or the test fails with its words."""
    require("promtool")
    ran = subprocess.run(["promtool", *arguments], input=given, capture_output=True, timeout=50, check=False)
    assert ran.returncode == 0, (ran.stdout + ran.stderr).decode()


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def rules() -> list[dict[str, Any]]:
    return [rule for group in loaded(FOLDER / "alerts.yaml")["groups"] for rule in group["rules"]]


ALERTS: Final = {rule["alert"]: rule for rule in rules() if "alert" in rule}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_m3_promtool_finds_nothing_in_what_a_service_exposes(tmp_path: Path, workers: str) -> None:
    """The linter of Prometheus has no word against `/metrics` after an upload, of one process and of several."""
    require("promtool")
    with ServiceProcess(tmp_path, ATTACHD_WORKERS=workers) as service:
        request = urllib.request.Request(service.mint_upload(), data=b"x" * 2**20, method="PUT")
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 201
        with urllib.request.urlopen(f"{service.ops_url}/metrics", timeout=30) as answer:
            text = answer.read()
    assert b'attachd_uploads_finished_total{protocol="put"} 1.0' in text
    promtool("check", "metrics", given=text)


def test_prometheus_takes_the_configuration() -> None:
    """promtool reads the configuration, and the rules that it names."""
    promtool("check", "config", str(FOLDER / "prometheus.yaml"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_the_rules_fire_when_they_should(path: Path) -> None:
    """Each case of the file, firing or not, comes out as it says."""
    promtool("test", "rules", str(path))


@pytest.mark.parametrize("name", ALERTS)
def test_the_alert_has_a_case_that_fires_and_one_that_does_not(name: str) -> None:
    """No alert is without its tests."""
    cases = [
        case
        for path in TESTS
        for test in loaded(path)["tests"]
        for case in test["alert_rule_test"]
        if case["alertname"] == name
    ]
    assert {bool(case.get("exp_alerts")) for case in cases} == {True, False}


@pytest.mark.parametrize("name", ALERTS)
def test_the_alert_says_what_to_do(name: str) -> None:
    """It has a severity, words for people, and its place in the runbook."""
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert rule["annotations"]["runbook"] == f"deploy/README.md#{name.lower()}"


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_asks_for_metrics_that_exist(rule: dict[str, Any]) -> None:
    """Every metric in its expression, and every label of one, is attachd's."""
    assert faults(rule["expr"]) == []


@pytest.mark.parametrize(
    "expression",
    [
        "rate(attachd_nothing_total[5m])",
        'attachd_transfers_in_flight{protocol="tus"}',
        "sum by (owner) (attachd_ready)",
        "attachd_upload_size_bytes > 0",
    ],
)
def test_what_does_not_exist_is_found(expression: str) -> None:
    """A metric, a matched label, or a grouping that there is not is told."""
    assert faults(expression)


def test_what_is_recorded_is_what_alerts_ask_for() -> None:
    """No rule asks for a recorded series that none records, and none is recorded in vain."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    asked = {name for rule in rules() for name in recorded if name in rule["expr"]}
    assert asked == recorded
    words = " ".join(rule["expr"] for rule in rules()).replace("(", " ").split()
    assert {word.split("[")[0] for word in words if word.startswith("attachd:")} <= recorded


def test_a_running_service_is_ready_for_who_watches(tmp_path: Path) -> None:
    """Of two workers the gauges that alerts ask for are there within seconds of the start, and right."""
    # a sweep that takes long has succeeded when the next one has seen it
    with ServiceProcess(tmp_path, ATTACHD_WORKERS="2", ATTACHD_SWEEP_INTERVAL="1s") as service:
        deadline = time.monotonic() + 60
        while 'attachd_storage_free_bytes{backend="filesystem"}' not in (seen := service.metrics()):
            assert time.monotonic() < deadline, seen
            time.sleep(0.05)
        while service.metrics().get("attachd_ready") != 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        while time.time() - service.metrics().get("attachd_gc_last_success_timestamp_seconds", 0) > 60:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        seen = service.metrics()
    assert seen['attachd_storage_free_bytes{backend="filesystem"}'] > 0
    keys = [value for name, value in seen.items() if name.startswith("attachd_keys{") and 'state="active"' in name]
    assert keys == [1]
