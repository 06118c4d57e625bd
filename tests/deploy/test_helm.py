"""The Helm chart: rendered by helm, and held against Kubernetes' rules that can be known without a cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
from functools import cache
from typing import Any, Final

import jsonschema
import pytest
import yaml

import service
from service.cli import COMMANDS
from service.metrics import Metrics
from service.settings import Settings, load
from tests.conftest import helm_path, require
from tests.deploy.proxies import DEPLOY

CHART: Final = DEPLOY / "helm" / "attachd"
VALUES: Final[dict[str, Any]] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: Final[dict[str, Any]] = json.loads((CHART / "values.schema.json").read_text())
URL: Final = "publicUrl=https://files.example.org"
S3: Final = ("storage.type=s3", "storage.s3.bucket=chat-files", "storage.s3.existingSecret=s3-keys")
#: what several pods need
SHARED: Final = (*S3, "database.existingSecret=db", "keys.existingSecret=keys")
ALL: Final = (
    *SHARED,
    "config.existingSecret=config",
    "autoscaling.enabled=true",
    "serviceMonitor.enabled=true",
    "serviceMonitor.labels.release=prometheus",
    "ingress.enabled=true",
    "ingress.tlsSecret=tls",
    "settings.max_size=2GiB",
)


@cache
def run(*values: str) -> subprocess.CompletedProcess[str]:
    """`helm template` of a release called files."""
    require("helm")
    words = [word for value in values for word in ("--set", value)]
    command = [str(helm_path()), "template", "files", str(CHART), "--kube-version", "1.31.0", *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"HOME": "/nonexistent"}
    )


def render(*values: str) -> dict[str, list[dict[str, Any]]]:
    """What the chart makes of the values, by kind."""
    done = run(URL, *values)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[dict[str, Any]]] = {}
    for each in yaml.safe_load_all(done.stdout):
        found.setdefault(each["kind"], []).append(each)
    return found


def pod_of(*values: str) -> dict[str, Any]:
    pod: dict[str, Any] = render(*values)["StatefulSet"][0]["spec"]["template"]["spec"]
    return pod


def environment_of(*values: str) -> dict[str, str]:
    """What attachd sees; what comes from a Secret has a value that fits."""
    secrets = {"ATTACHD_DATABASE": "sqlite:////data/attachd/attachd.db"}
    return {
        entry["name"]: entry.get("value", secrets.get(entry["name"], "secret"))
        for entry in pod_of(*values)["containers"][0]["env"]
    }


# --- without helm ---------------------------------------------------------------------------


def test_the_default_values_fit_their_schema() -> None:
    """values.yaml is valid by values.schema.json, which knows each value in it and no other."""
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(VALUES, SCHEMA)

    def names(of: dict[str, Any], given: Any) -> None:
        if isinstance(given, dict) and of.get("additionalProperties") is False:
            assert set(of["properties"]) - {"global"} == set(given)
            for name, inner in given.items():
                names(of["properties"][name], inner)

    names(SCHEMA, VALUES)


def test_the_chart_is_of_this_version() -> None:
    """`appVersion`, which is the image's tag, is the version of the service."""
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == service.__version__


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ("replicas", 0),
        ("settings", {"data": "/elsewhere"}),
        ("settings", {"max_size": 5}),
        ("publicUrl", "files.example.org"),
        ("persistence", {"accessModes": ["ReadWriteMany"]}),
        ("secretKey", "hunter2"),
    ],
)
def test_a_wrong_value_is_refused(value: str, wrong: object) -> None:
    """The schema refuses values that cannot work, settings that the chart makes itself, and unknown names."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(VALUES | {value: wrong}, SCHEMA)


def test_settings_that_the_chart_makes_are_settings() -> None:
    """What must not stand under `settings` are names that exist."""
    made = SCHEMA["properties"]["settings"]["propertyNames"]["not"]["enum"]
    assert set(made) <= set(Settings.model_fields)


# --- with helm ------------------------------------------------------------------------------


def test_helm_has_nothing_to_say() -> None:
    """`helm lint --strict` finds no fault."""
    require("helm")
    command = [str(helm_path()), "lint", str(CHART), "--strict", "--kube-version", "1.31.0", "--set", URL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("values", [(), ALL], ids=["defaults", "everything"])
def test_names_within_the_release_lead_somewhere(values: tuple[str, ...]) -> None:
    """Selectors choose the pods, ports have the names that are asked for, each mount has its volume."""
    release = render(*values)
    stateful = release["StatefulSet"][0]
    template = stateful["spec"]["template"]
    labels = template["metadata"]["labels"].items()
    assert stateful["spec"]["selector"]["matchLabels"].items() <= labels
    container = template["spec"]["containers"][0]
    ports = {port["name"] for port in container["ports"]}
    for each in release["Service"]:
        assert each["spec"]["selector"].items() <= labels
        assert {port["targetPort"] for port in each["spec"]["ports"]} <= ports
    assert stateful["spec"]["serviceName"] in {each["metadata"]["name"] for each in release["Service"]}
    for budget in release["PodDisruptionBudget"]:
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels
    volumes = {each["name"] for each in template["spec"]["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in stateful["spec"]["volumeClaimTemplates"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    for monitor in release.get("ServiceMonitor", []):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        chosen = [each for each in release["Service"] if wanted <= each["metadata"]["labels"].items()]
        assert [port["name"] for each in chosen for port in each["spec"]["ports"]] == ["ops"]
    for ingress in release.get("Ingress", []):
        backend = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["name"]
        named = [each for each in release["Service"] if each["metadata"]["name"] == backend]
        assert [port["name"] for port in named[0]["spec"]["ports"]] == ["http"]


@pytest.mark.parametrize("values", [(), S3, ALL], ids=["defaults", "s3", "everything"])
def test_the_settings_are_valid(values: tuple[str, ...]) -> None:
    """attachd takes the environment, once; its data is in the volume, its ports are the pod's."""
    entries = pod_of(*values)["containers"][0]["env"]
    names = [entry["name"] for entry in entries]
    assert sorted(set(names)) == sorted(names)
    environment = environment_of(*values)
    environment.pop("ATTACHD_CONFIG", None)
    settings = load(environment)
    container = pod_of(*values)["containers"][0]
    assert settings.data.is_relative_to(container["volumeMounts"][0]["mountPath"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert settings.listen.url.endswith(f":{ports['http']}")
    assert settings.ops_listen.url.endswith(f":{ports['ops']}")


@pytest.mark.parametrize("values", [(), ALL], ids=["defaults", "everything"])
def test_the_pod_has_no_more_rights_than_it_needs(values: tuple[str, ...]) -> None:
    """Not root, nothing written but in volumes, no capability, no token of the cluster."""
    pod = pod_of(*values)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_no_secret_is_made() -> None:
    """Every credential is named and made elsewhere: no Secret is rendered, no value of one stands in the pod."""
    assert "Secret" not in render(*ALL)
    for entry in pod_of(*ALL)["containers"][0]["env"]:
        if entry["name"] in {"ATTACHD_DATABASE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}:
            assert "secretKeyRef" in entry["valueFrom"]


def test_probes_ask_the_operations_listener() -> None:
    """Alive and ready are different questions, and neither goes to the public port."""
    container = pod_of()["containers"][0]
    asked = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {each["port"] for each in asked.values()} == {"ops"}
    assert [asked[name]["path"] for name in ("startup", "liveness", "readiness")] == ["/livez", "/livez", "/readyz"]


@pytest.mark.parametrize("grace", [0, 30, 300])
def test_a_stop_has_more_time_than_the_grace(grace: int) -> None:
    """A pod is given more than `graceSeconds` and four seconds, whatever those are."""
    values = (f"graceSeconds={grace}",)
    assert load(environment_of(*values)).grace == grace
    assert pod_of(*values)["terminationGracePeriodSeconds"] > grace + 4 + 5


@pytest.mark.parametrize("several", ["replicas=2", "autoscaling.enabled=true"])
@pytest.mark.parametrize(
    ("values", "word"),
    [
        ((), "database.existingSecret"),
        (("database.existingSecret=db",), "storage.type s3"),
        (("database.existingSecret=db", *S3), "keys.existingSecret"),
    ],
)
def test_several_pods_need_what_they_share(several: str, values: tuple[str, ...], word: str) -> None:
    """More than one pod on SQLite, a volume or keys of its own is refused, and the message says what is missing."""
    done = run(URL, several, *values)
    assert done.returncode != 0
    assert several.partition("=")[0] in done.stderr
    assert word in done.stderr


def test_pods_are_scaled_by_a_metric_that_exists() -> None:
    """The autoscaler is there where it is asked for and allowed, and then nothing else sets the number of pods."""
    assert "HorizontalPodAutoscaler" not in render()
    assert render()["StatefulSet"][0]["spec"]["replicas"] == 1
    release = render(*ALL)
    assert "replicas" not in release["StatefulSet"][0]["spec"]
    scaler = release["HorizontalPodAutoscaler"][0]["spec"]
    assert scaler["scaleTargetRef"]["name"] == release["StatefulSet"][0]["metadata"]["name"]
    name = scaler["metrics"][0]["pods"]["metric"]["name"]
    assert f"\n# TYPE {name} gauge" in Metrics("1").render().decode()


def test_a_single_pod_may_be_moved() -> None:
    """The disruption budget never keeps a node from being emptied."""
    assert render()["PodDisruptionBudget"][0]["spec"]["maxUnavailable"] == 1


def test_s1_head_reaches_a_single_pod_that_stops() -> None:
    """Alone, a pod that is not ready is still sent requests: it answers HEAD to its end; of several, others do."""

    def published(*values: str) -> bool:
        public = [each for each in render(*values)["Service"] if not each["metadata"]["name"].endswith("-ops")]
        return bool(public[0]["spec"]["publishNotReadyAddresses"])

    assert published()
    assert not published(*SHARED, "replicas=2")


def test_a_missing_url_or_bucket_is_named() -> None:
    """What must be set and is not stops the installation with its name."""
    assert "publicUrl" in run().stderr
    assert "storage.s3.bucket" in run(URL, "storage.type=s3").stderr


def test_the_notes_name_what_there_is() -> None:
    """Commands of the notes are attachd's."""
    commands = re.findall(r"-- attachd (\w+)", (CHART / "templates" / "NOTES.txt").read_text())
    assert commands
    assert set(commands) <= set(COMMANDS)
