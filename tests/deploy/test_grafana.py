"""deploy/grafana: a dashboard of metrics that exist, that any Grafana with a Prometheus can show."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.conftest import require
from tests.deploy.instruments import ROOT, faults, instruments
from tests.deploy.test_prometheus import loaded, rules

FOLDER: Final = ROOT / "deploy" / "grafana"
DASHBOARD: Final[dict[str, Any]] = json.loads((FOLDER / "dashboards" / "attachd.json").read_text("utf-8"))
PANELS: Final[list[dict[str, Any]]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
WIDTH: Final = 24
#: what the dashboard need not show: a histogram's other half, or what a panel of the same thing shows
NOT_SHOWN: Final = {"attachd_upload_size_bytes", "attachd_scan_duration_seconds", "attachd_build_info"}


def targets() -> list[dict[str, Any]]:
    return [target for panel in PANELS for target in panel["targets"]]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_asks_for_metrics_that_exist(panel: dict[str, Any]) -> None:
    """Every metric, label and word of a legend is attachd's, and what it asks is explained and has a unit."""
    for target in panel["targets"]:
        assert faults(target["expr"], target["legendFormat"]) == []
        assert 'job="$job"' in target["expr"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]


def test_recorded_series_that_panels_ask_for_are_recorded() -> None:
    """What a panel takes from a rule, a rule of deploy/prometheus records."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    asked = {word.split("{")[0] for target in targets() for word in target["expr"].split() if "attachd:" in word}
    assert asked
    assert asked <= recorded


def test_every_metric_is_shown() -> None:
    """A metric that no panel asks for is one that nobody looks at: it is named here, or shown."""
    asked = " ".join(target["expr"] for target in targets())
    assert {name for name in instruments() if name not in asked} == NOT_SHOWN


def test_prometheus_understands_every_expression(tmp_path: Path) -> None:
    """promtool parses them all, with Grafana's variables filled in."""
    require("promtool")
    filled = [target["expr"].replace("$__rate_interval", "1m").replace("$job", "attachd") for target in targets()]
    written = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(filled)]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": written}]}))
    ran = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, timeout=50, check=False)
    assert ran.returncode == 0, (ran.stdout + ran.stderr).decode()


def test_panels_have_ids_and_places_of_their_own() -> None:
    """No two panels share an id or overlap, and none reaches beyond the page."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= WIDTH
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_nothing_is_bound_to_one_grafana() -> None:
    """The data source is a variable everywhere, and the service is chosen from those that Prometheus knows."""
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["job"]["definition"] == "label_values(attachd_build_info, job)"
    assert faults(variables["job"]["query"]["query"]) == []
    assert "id" not in DASHBOARD
    sources = [variables["job"]["datasource"]]
    sources += [panel["datasource"] for panel in PANELS] + [target["datasource"] for target in targets()]
    assert all(source == SOURCE for source in sources)


def test_rows_are_those_that_operators_look_for() -> None:
    """From what users notice down to what tidies up."""
    assert [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"] == [
        "Throughput and success",
        "Requests",
        "Uploads, and what is wasted",
        "Integrity",
        "Storage",
        "Saturation",
        "Keys and limits",
        "Events and janitor",
    ]


def test_grafana_is_told_of_the_dashboard_and_of_prometheus() -> None:
    """The provisioning names a Prometheus, which scrapes as often as panels assume, and a folder of dashboards."""
    source = loaded(FOLDER / "provisioning" / "datasources" / "prometheus.yaml")["datasources"][0]
    scraped = loaded(ROOT / "deploy" / "prometheus" / "prometheus.yaml")["global"]["scrape_interval"]
    assert (source["type"], source["jsonData"]["timeInterval"]) == ("prometheus", scraped)
    provider = loaded(FOLDER / "provisioning" / "dashboards" / "attachd.yaml")["providers"][0]
    assert (provider["type"], provider["options"]["path"]) == ("file", "/var/lib/grafana/dashboards")
