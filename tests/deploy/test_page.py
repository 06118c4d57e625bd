"""docs/deploying.md: its lines name what is there, and those that need neither root nor an engine are run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest
import yaml

from service.cli import COMMANDS
from service.settings import Settings, env_name
from tests.conftest import helm_path, require
from tests.deploy.proxies import DEPLOY
from tests.e2e.process import ROOT

PAGE: Final = (ROOT / "docs" / "deploying.md").read_text("utf-8")
BLOCKS: Final = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
LINES: Final = [shlex.split(line) for block in BLOCKS for line in block.splitlines()]
UNIT: Final = (DEPLOY / "systemd" / "attachd.service").read_text()


def lines(program: str) -> list[list[str]]:
    """The page's command lines of a program."""
    found = [line for line in LINES if line[0] == program]
    assert found, f"the page has no line of {program}"
    return found


def test_every_block_is_shell() -> None:
    """There is nothing on the page but shell that parses."""
    assert len(re.findall(r"^```\w", PAGE, re.MULTILINE)) == len(BLOCKS)
    for block in BLOCKS:
        subprocess.run(["sh", "-n"], input=block, text=True, check=True)


def test_files_named_exist() -> None:
    """Whatever of deploy/ a line names is there, but for the secrets."""
    named = {word.partition("://")[2] or word for line in LINES for word in line if "deploy/" in word}
    assert named
    for name in named:
        assert name.startswith("deploy/secrets") or (ROOT / name).exists(), name


def test_settings_and_commands_named_exist() -> None:
    """Settings are those of the service, and what is run is a command of it."""
    for name in set(re.findall(r"\bATTACHD_[A-Z0-9_]+\b", PAGE)):
        assert name in {env_name(field) for field in Settings.model_fields}
    called = [
        line[line.index("attachd", 1) + 1] for line in LINES if line[0] in {"docker", "kubectl"} if "exec" in line
    ]
    assert called
    commands = re.findall(r"attachd\.toml (\w+)", " ".join(word for line in lines("runuser") for word in line))
    assert {each for each in called if each != "attachd"} | set(commands) <= set(COMMANDS)


def test_the_unit_finds_what_the_lines_make() -> None:
    """User, program and settings of the unit are those that are installed."""
    user = lines("useradd")[0][-1]
    assert f"User={user}\nGroup={user}\n" in UNIT
    place = lines("/usr/bin/python3")[0][-1]
    settings = next(line[-1] for line in lines("install") if line[-1].startswith("/etc/attachd/"))
    assert f"ExecStart={place}/bin/attachd --config {settings} serve\n" in UNIT
    assert [f"{place}/bin/pip", "install", "."] in LINES


def test_secrets_of_the_compose_files_are_made() -> None:
    """Each file that a container is given is made by a line, and the images' users may read them."""
    wanted = set()
    for name in ("compose.yaml", "compose.s3.yaml"):
        wanted |= {each["file"] for each in yaml.safe_load((DEPLOY / name).read_text())["secrets"].values()}
    text = "\n".join(BLOCKS)
    for each in wanted:
        assert re.search(rf"(> |\S+ )deploy{each[1:]}\n", text), each
    owner = re.search(r"--uid (\d+)", (ROOT / "Dockerfile").read_text())
    assert owner is not None
    for each in ("attachd.toml", "s3-credentials"):
        assert re.search(rf"{owner[1]} .*deploy/secrets/{re.escape(each)}\n", text)


@pytest.mark.parametrize("number", [0, 1])
def test_the_helm_lines_work(number: int) -> None:
    """Helm takes the values of each line and renders the chart with them."""
    require("helm")
    line = lines("helm")[number]
    values = [word for each in lines("helm")[: number + 1] for word in _values(each)]
    command = [str(helm_path()), "template", *line[2:4], "--kube-version", "1.31.0", *values]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = {each["metadata"]["name"] for each in yaml.safe_load_all(done.stdout) if each["kind"] == "StatefulSet"}
    assert {f"statefulset/{name}" for name in names} == {
        word for each in lines("kubectl") for word in each if word.startswith("statefulset/")
    }


def _values(line: list[str]) -> list[str]:
    return [word for flag, value in pairwise(line) if flag == "--set" for word in (flag, value)]


def test_the_credentials_line_is_what_both_sides_read(tmp_path: Path) -> None:
    """The line that makes the store's keys writes a file in the form that boto3 and the gateway's start parse."""
    line = next(line for block in BLOCKS for line in block.splitlines() if line.startswith("printf"))
    subprocess.run(["sh", "-ec", line.replace("deploy/secrets", str(tmp_path))], check=True)
    text = (tmp_path / "s3-credentials").read_text()
    assert re.fullmatch(r"\[default\]\naws_access_key_id = attachd\naws_secret_access_key = [0-9a-f]{64}\n", text)


def test_the_bucket_lines_have_the_files_bucket() -> None:
    """The bucket of the lines is the one in the policy, which is to be changed in both."""
    bucket = next(line[line.index("--bucket") + 1] for line in lines("aws") if "--bucket" in line)
    resources = [each["Resource"] for each in json.loads((DEPLOY / "s3" / "policy.json").read_text())["Statement"]]
    assert set(resources) == {f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"}
