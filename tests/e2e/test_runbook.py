"""deploy/README.md: what it tells an operator to type does what it says, under load; each alert has its section."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

import pytest

from service.metrics import Metrics
from service.settings import Settings, env_name
from tests.e2e.process import ROOT, ServiceProcess
from tests.e2e.working import OCTETS, ask, create, resume, until

RUNBOOK = (ROOT / "deploy" / "README.md").read_text("utf-8")
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"
PIECE = 64 * 2**10


def block(mark: str) -> str:
    """The lines of the runbook's example that begins with a comment of these words."""
    found = re.search(rf"```sh\n# {re.escape(mark)}.*?\n(.*?)```", RUNBOOK, re.DOTALL)
    assert found is not None, mark
    return found[1]


def shell(service: ServiceProcess, lines: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The lines as an operator's shell runs them, with the service's settings."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["sh", "-c", lines], cwd=ROOT, env={**service.environment, "PATH": path, **more},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


class Load:
    """Clients that finish one file after the other until they are told to stop."""

    def __init__(self, service: ServiceProcess) -> None:
        self._service = service
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._go_on, args=(seed,)) for seed in range(3)]
        #: file id → content, of each that a client was told is there
        self.files: dict[str, bytes] = {}

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _go_on(self, seed: int) -> None:
        turn = 0
        while not self._stopped.is_set():
            turn += 1
            content = bytes([seed, turn % 256]) * (PIECE + 257 * turn)
            upload = create(self._service, len(content))
            ask(self._service, "PATCH", upload, content[:PIECE], Upload_Offset="0", Content_Type=OCTETS)
            answer = ask(self._service, "PATCH", upload, content[PIECE:], Upload_Offset=str(PIECE), Content_Type=OCTETS)
            assert answer.status == 204
            self.files[answer.headers["Attachd-File-Id"]] = content


def fetched(service: ServiceProcess, file_id: str) -> bytes:
    with urllib.request.urlopen(service.mint_download(file_id), timeout=30) as answer:
        return bytes(answer.read())


@pytest.mark.timeout(180)
def test_a_backup_made_under_load_can_be_restored(tmp_path: Path) -> None:
    """What was there when the copy began is there after it, byte for byte, and a half-sent upload goes on."""
    backup = tmp_path / "backup"
    with ServiceProcess(tmp_path / "lost", ATTACHD_WORKERS="2") as service:
        half = os.urandom(4 * PIECE)
        upload = create(service, len(half))
        ask(service, "PATCH", upload, half[:PIECE], Upload_Offset="0", Content_Type=OCTETS)
        with Load(service) as load:
            while len(load.files) < 20:
                time.sleep(0.05)
            before = dict(load.files)
            made = shell(service, block("backup"), BACKUP=str(backup))
            enough = len(load.files) + 20
            while len(load.files) < enough:
                time.sleep(0.05)
        assert made.returncode == 0, made.stderr
        service.kill()
        shutil.rmtree(service.data)
        restored = shell(service, block("restore"), BACKUP=str(backup))
        assert restored.returncode in (0, 1), restored.stderr
        words = {line.split()[0].rstrip(":") for line in restored.stdout.splitlines()[:-1]}
        # what came after the copy, and nothing else
        assert words <= {"stranger", "orphan", "leftover", "staged", "upload-finished"}, restored.stdout
        service.start()
        for file_id, content in before.items():
            assert fetched(service, file_id) == content
        assert resume(service, upload, half).status == 204
        answer = ask(service, "HEAD", upload)
        assert answer.headers["Upload-Offset"] == str(len(half))
        verified = shell(service, "attachd verify --all")
        assert verified.returncode == 0, verified.stdout


def put(link: str) -> int:
    """The status of a small upload by the link."""
    request = urllib.request.Request(link, method="PUT", data=b"hello")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_key_is_followed_by_another_and_no_link_is_lost(tmp_path: Path) -> None:
    """Links of the old key work until it is revoked, new ones are signed by the new key, and the metric tells which."""
    with ServiceProcess(tmp_path) as service:

        def said(lines: str, **more: str) -> str:
            done = shell(service, lines, **more)
            assert done.returncode == 0, done.stderr
            return done.stdout

        (old,) = [line.split()[0] for line in said("attachd keys list").splitlines()[1:]]
        early, later = (said(f"attachd link upload --uses {uses}").strip() for uses in (1, 100))
        new = said(block("rotate 1")).strip()
        assert put(said("attachd link upload").strip()) == 201
        said(block("rotate 2"), OLD=old)
        assert put(early) == 201
        tokens = {kid: service.metrics()[f'attachd_key_tokens_total{{kid="{kid}"}}'] for kid in (old, new)}
        assert all(tokens.values())
        said(block("rotate 3"), OLD=old)
        # the file is looked at once a second
        until(lambda: put(later) == 401)
        assert put(said("attachd link upload").strip()) == 201
        assert [line.split()[3] for line in said("attachd keys list").splitlines()[1:]] == ["revoked", "active"]


def test_what_the_runbook_says_of_draining_holds(tmp_path: Path) -> None:
    """SIGTERM ends with 0 within the grace, and the file that was being sent can be finished after the next start."""
    with ServiceProcess(tmp_path, ATTACHD_GRACE="2s") as service:
        content = os.urandom(2 * PIECE)
        upload = create(service, len(content))
        ask(service, "PATCH", upload, content[:PIECE], Upload_Offset="0", Content_Type=OCTETS)
        # it would end with 1, had it been forced to when the grace was over
        assert service.terminate() == 0
        service.start()
        assert resume(service, upload, content).status == 204


def headings() -> list[str]:
    return re.findall(r"^#+ (.+)$", RUNBOOK, re.MULTILINE)


def test_every_alert_has_its_section() -> None:
    """An alert's runbook link leads to a section of its name, and no section is left over."""
    if not ALERTS.exists():
        pytest.skip("there are no alert rules")
    text = ALERTS.read_text("utf-8")
    alerts = set(re.findall(r"^\s*- alert: (\w+)", text, re.MULTILINE))
    assert alerts
    assert alerts == {name for name in headings() if name.startswith("Attachd")}
    for name in alerts:
        assert f"#{name.lower()}" in text, name


def test_sections_of_alerts_are_whole() -> None:
    """Each has its three parts in order."""
    sections = re.split(r"^## (Attachd\w+)\n", RUNBOOK, flags=re.MULTILINE)[1:]
    assert len(sections) >= 2
    for name, text in zip(sections[::2], sections[1::2], strict=True):
        assert re.findall(r"^\*\*(\w+)\.?\*\*", text.split("\n# ")[0], re.MULTILINE) == ["Means", "Look", "Do"], name


def test_what_the_runbook_names_is_there() -> None:
    """Settings, commands and metrics of the runbook exist."""
    families = {family.name for family in Metrics("0").registry.collect()}
    metrics = {name.removesuffix("_total") for name in re.findall(r"attachd_[a-z_]+[a-z]", RUNBOOK)}
    assert metrics - families == set()
    for target in re.findall(r"\]\(([^)#:]+)\)", RUNBOOK):
        assert (ROOT / "deploy" / target).exists(), target
    named = set(re.findall(r"ATTACHD_[A-Z0-9_]+", RUNBOOK))
    assert named <= {*map(env_name, Settings.model_fields), "ATTACHD_CONFIG"}
    help_text = subprocess.run(
        [sys.executable, "-m", "service", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    for command in set(re.findall(r"`attachd ([a-z-]+)", RUNBOOK)):
        assert f"  {command} " in help_text, command
