"""README.md and the pages beside it: what they show is run, what they name exists.

A block's info string says what it is: `console` is a session whose lines are compared, `…` standing
for any text; `NAME.py` and `NAME.mjs` are modules that a driver here calls; `sh docker` is only read,
for a test has no container engine. All run against one service, started by the README's own
`make run` in a directory that looks like a clone with its virtual environment made.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pytest

from service.cli import COMMANDS
from service.hashing import ALGORITHMS
from service.protocol.problems import KINDS
from service.protocol.tus import EXTENSIONS
from service.settings import Settings, env_name, load
from tests.conftest import require
from tests.e2e.clients import NODE, need_node
from tests.e2e.process import ROOT
from tests.ports import free_port

README: Final = (ROOT / "README.md").read_text("utf-8")
CLIENTS: Final = (ROOT / "docs" / "clients.md").read_text("utf-8")
CONTROL: Final = (ROOT / "docs" / "control.md").read_text("utf-8")
PROTOCOLS: Final = (ROOT / "docs" / "protocols.md").read_text("utf-8")
BLOCK: Final = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: seconds in which any command of the pages must be over
LIMIT: Final = 60.0
#: the addresses on the pages
PUBLIC: Final = "127.0.0.1:8080"
OPERATIONS: Final = "127.0.0.1:9080"


@dataclass(frozen=True)
class Step:
    """A command of a session and what the page shows below it."""

    command: str
    shown: str

    def __str__(self) -> str:
        return self.command


def steps(page: str) -> list[Step]:
    """The commands of all sessions on the page, in order."""
    found: list[Step] = []
    for kind, _, text in BLOCK.findall(page):
        if kind == "console":
            for piece in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, _, shown = piece.partition("\n")
                found.append(Step(command, shown.rstrip("\n")))
    return found


MAKE_RUN, *SESSION = steps(README) + steps(CLIENTS) + steps(CONTROL)


def snippet(name: str) -> str:
    return next(str(text) for page in (README, CLIENTS) for _, found, text in BLOCK.findall(page) if found == name)


def agrees(shown: str, said: str) -> bool:
    """Whether the text is the one shown, `…` standing for anything."""
    pattern = ".*".join(re.escape(piece) for piece in shown.split("…"))
    return re.fullmatch(pattern, said.rstrip("\n"), re.DOTALL) is not None


class Clone:
    """A directory with what `make run` needs, and the service that it started."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.port, self.ops_port = free_port(), free_port()
        self.log = path / "make.log"
        (path / "Makefile").symlink_to(ROOT / "Makefile")
        programs = path / ".venv" / "bin"
        programs.mkdir(parents=True)
        (programs / "activate").write_text('PATH="$PWD/.venv/bin:$PATH"\n')
        command = programs / "attachd"
        command.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom service.cli import main\nmain()\n"
        )
        command.chmod(0o755)
        (path / ".venv" / ".run").touch()
        # the modules among the snippets, and where Node finds the clients
        (path / "node_modules").symlink_to(NODE / "node_modules")
        for page in (README, CLIENTS):
            for kind, name, text in BLOCK.findall(page):
                if kind in ("python", "js"):
                    (path / name).write_text(text, "utf-8")

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ATTACHD_", "MAKE"))}
        return inherited | {
            "ATTACHD_LISTEN": f"127.0.0.1:{self.port}",
            "ATTACHD_OPS_LISTEN": f"127.0.0.1:{self.ops_port}",
        }

    def here(self, text: str) -> str:
        """The page's text with this service's addresses."""
        return text.replace(PUBLIC, f"127.0.0.1:{self.port}").replace(OPERATIONS, f"127.0.0.1:{self.ops_port}")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The README's first command has printed its link; it is ended afterwards."""
        # the set-up itself would install packages: its mark is there, and make is told to believe it
        command = [*shlex.split(MAKE_RUN.command), "-o", ".venv/.run"]
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=self.path,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            deadline = time.monotonic() + LIMIT
            while "link download" not in self.log.read_text():
                assert process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.02)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(LIMIT)

    @cached_property
    def transcript(self) -> list[tuple[str, int]]:
        """What each step of the session printed, and its exit code: one shell from first to last."""
        script = "".join(f"{self.here(step.command)}\nprintf '\\036%s\\036' $?\n" for step in SESSION)
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.path,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
            check=False,
        )
        pieces = done.stdout.decode().split("\x1e")
        return [(text, int(code)) for text, code in zip(pieces[::2], pieces[1::2], strict=False)]

    def python(self, code: str, *arguments: str) -> str:
        """What the code prints; the snippets can be imported."""
        return self._run([sys.executable, "-c", code, *arguments])

    def node(self, code: str, *arguments: str) -> str:
        """The same for JavaScript."""
        need_node()
        (self.path / "driver.mjs").write_text(code)
        return self._run(["node", "driver.mjs", *arguments])

    def attachd(self, *arguments: str) -> str:
        return self._run([".venv/bin/attachd", *arguments])

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command,
            cwd=self.path,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def key(self, alg: str) -> str:
        """The newest key of that algorithm, as JSON."""
        keys = json.loads((self.path / "var" / "keys.json").read_text())["keys"]
        return json.dumps([key for key in keys if key["alg"] == alg][-1])


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    for program in ("make", "bash", "curl"):
        if shutil.which(program) is None:
            require(program, why="it is not on this machine")
    clone = Clone(tmp_path_factory.mktemp("clone"))
    with clone.running():
        yield clone


@pytest.fixture(scope="module")
def edwards(clone: Clone) -> str:
    """An EdDSA key of issuer `chat`, made as the README says and known to the service."""
    clone.attachd("keys", "new", "--alg", "EdDSA", "--issuer", "chat")
    link = clone.attachd("link", "upload")
    deadline = time.monotonic() + LIMIT
    while answer(urllib.request.Request(link, method="HEAD"))[0] == 401:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return clone.key("EdDSA")


def answer(request: urllib.request.Request | str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def sent(link: str, content: bytes) -> str:
    """The id of the file that a plain PUT to the link makes."""
    status, body = answer(urllib.request.Request(link, data=content, method="PUT"))
    assert status == 201, body
    return str(json.loads(body)["file_id"])


def content_of(clone: Clone, file_id: str) -> bytes:
    status, body = answer(clone.attachd("link", "download", file_id))
    assert status == 200, body
    return body


# --- what the pages show --------------------------------------------------------------------


def test_make_run_prints_what_the_readme_shows(clone: Clone) -> None:
    """The first command starts the service and prints its addresses and a link."""
    assert agrees(clone.here(MAKE_RUN.shown), clone.log.read_text())


def test_the_printed_lines_can_be_pasted(clone: Clone) -> None:
    """Each line that `make run` prints to send a file, and to make a download link, works in that directory."""
    (clone.path / "FILE").write_bytes(b"pasted")
    lines = [line.strip() for line in clone.log.read_text().splitlines()]
    curl, put, link = (
        next(line for line in lines if pattern in line) for pattern in ("curl -T FILE", " put FILE ", " link download ")
    )
    file_id = json.loads(clone._run(["bash", "-c", curl]))["file_id"]
    assert clone._run(["bash", "-c", put]) == file_id
    assert answer(clone._run(["bash", "-c", link.replace("FILE_ID", file_id)])) == (200, b"pasted")


@pytest.mark.parametrize("number", range(len(SESSION)), ids=[str(step) for step in SESSION])
def test_a_command_answers_as_shown(clone: Clone, number: int) -> None:
    """Run one after the other in one shell, each command prints what stands below it."""
    said, code = clone.transcript[number]
    shown = clone.here(SESSION[number].shown)
    assert agrees(shown, said), f"shown: {shown}\nsaid: {said}"
    assert (code == 0) is not shown.startswith(("curl: ", "attachd: "))


MINT_IN_PYTHON: Final = """
import json, sys, mint
key, base, file_id = json.loads(sys.argv[1]), *sys.argv[2:]
print(mint.download_link(key, base, file_id) if file_id else mint.upload_link(key, base, "user:42", 1000))
"""
MINT_IN_NODE: Final = """
import { downloadLink, uploadLink } from "./mint.mjs";
const [key, base, fileId] = [JSON.parse(process.argv[2]), ...process.argv.slice(3)];
console.log(fileId ? await downloadLink(key, base, fileId) : await uploadLink(key, base, "user:42", 1000));
"""


@pytest.mark.parametrize("alg", ["HS256", "EdDSA"])
@pytest.mark.parametrize("language", ["python", "node"])
def test_links_minted_by_the_snippets_are_accepted(clone: Clone, edwards: str, language: str, alg: str) -> None:
    """A file goes up and comes down through links that a backend made with a JWT library alone."""
    mint, code = (clone.python, MINT_IN_PYTHON) if language == "python" else (clone.node, MINT_IN_NODE)
    file_id = sent(mint(code, clone.key(alg), clone.base, ""), b"a photo")
    assert answer(mint(code, clone.key(alg), clone.base, file_id)) == (200, b"a photo")


@pytest.fixture
def photo(clone: Clone) -> Path:
    path = clone.path / "photo.png"
    path.write_bytes(os.urandom(3_000_000))
    return path


def test_the_tus_js_client_snippet_sends_a_file(clone: Clone, photo: Path) -> None:
    """`send` resolves to the id of the file, which has the bytes."""
    driver = """
    import { createReadStream } from "node:fs";
    import { send } from "./tus.mjs";
    const [path, link] = process.argv.slice(2);
    console.log(await send(Object.assign(createReadStream(path), { name: "photo.png", type: "image/png" }), link));
    """
    assert content_of(clone, clone.node(driver, photo.name, clone.attachd("link", "upload"))) == photo.read_bytes()


def test_the_uppy_snippet_sends_files(clone: Clone, photo: Path) -> None:
    """Two files added to one Uppy become two files, each through a link of its own."""
    driver = """
    import { readFile } from "node:fs/promises";
    import { makeUppy } from "./uppy.mjs";
    const [path, ...links] = process.argv.slice(2);
    const uppy = makeUppy(async () => links.pop());
    const bytes = await readFile(path);
    // in Node the client takes Buffers, and Uppy reads only their size
    for (const name of ["a.png", "b.png"]) {
      uppy.addFile({ name, type: "image/png", data: Object.assign(Buffer.from(bytes), { size: bytes.length }) });
    }
    const { successful } = await uppy.upload();
    console.log(JSON.stringify(successful.map((file) => file.uploadURL)));
    process.exit(0);
    """
    links = [clone.attachd("link", "upload") for _ in range(2)]
    urls = json.loads(clone.node(driver, photo.name, *links))
    ids = {json.loads(answer(url)[1])["file_id"] for url in urls}
    assert len(ids) == 2
    assert [content_of(clone, file_id) for file_id in ids] == [photo.read_bytes()] * 2


def test_the_tuspy_snippet_sends_a_file(clone: Clone, photo: Path) -> None:
    """`send` returns the id of the file, which has the bytes."""
    driver = "import sys, tus; print(tus.send(*sys.argv[1:]))"
    assert content_of(clone, clone.python(driver, photo.name, clone.attachd("link", "upload"))) == photo.read_bytes()


# --- what the pages say ---------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    """At most 150 lines."""
    assert len(README.splitlines()) <= 150


def test_every_block_is_run_or_known() -> None:
    """No page has a block that nothing here looks at."""
    blocks = {(kind, name) for page in (README, CLIENTS, CONTROL) for kind, name, _ in BLOCK.findall(page)}
    modules = {("python", "mint.py"), ("python", "tus.py"), ("js", "mint.mjs"), ("js", "tus.mjs"), ("js", "uppy.mjs")}
    assert blocks == modules | {("console", ""), ("sh", "docker")}
    assert BLOCK.findall(PROTOCOLS) == []


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+)`", README))))
def test_a_guarantee_names_a_test(name: str) -> None:
    """The name is the beginning of a test's name."""
    assert any(f"def {name}" in path.read_text("utf-8") for path in (ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\battachd_[a-z_]+\b", README)) - {"attachd_"}))
def test_a_metric_named_is_served(clone: Clone, name: str) -> None:
    """The name stands in the exposition."""
    assert f"\n# TYPE {name} " in answer(f"http://127.0.0.1:{clone.ops_port}/metrics")[1].decode()


#: what the README sets on purpose though there is no such setting
MISSPELT: Final = "ATTACHD_MAXSIZE"


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"\bATTACHD_[A-Z_]+\b", README + CLIENTS + CONTROL + PROTOCOLS)) - {MISSPELT})
)
def test_a_setting_named_exists(name: str) -> None:
    """The name is that of a setting."""
    assert name in {env_name(field) for field in Settings.model_fields}


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/clients.md",
        "docs/control.md",
        "docs/deploying.md",
        "docs/protocols.md",
        "docs/link-vectors.md",
        "docs/metrics.md",
        "docs/operating.md",
        "docs/s3.md",
    ],
)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    """Every relative link is that of a file."""
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text("utf-8")):
        assert (path.parent / target).is_file(), target


def test_the_docker_lines_fit_the_image() -> None:
    """They mount the volume, publish the public port alone, set what can be set, and call commands that exist."""
    image = (ROOT / "Dockerfile").read_text("utf-8")
    build, run, command = (shlex.split(line) for line in snippet("docker").splitlines())
    assert build == ["docker", "build", "-t", run[-1], "."]
    options = dict(zip(run[3:-1:2], run[4:-1:2], strict=True))
    assert f"VOLUME {options['-v'].partition(':')[2]}\n" in image
    assert f"EXPOSE {options['-p'].partition(':')[2]}\n" in image
    load(dict([options["-e"].split("=", 1)]))
    assert command[:3] == ["docker", "exec", options["--name"]]
    assert command[3] == "attachd"
    assert command[4] in COMMANDS


@pytest.mark.parametrize("client", ["tuspy", "aiotus"])
def test_the_python_clients_tested_are_those_installed(client: str) -> None:
    """The version that the README names is the one the tests run with."""
    assert f"{client} {importlib.metadata.version(client)}" in README


@pytest.mark.parametrize("client", ["tus-js-client", "@uppy/tus"])
def test_the_node_clients_tested_are_those_pinned(client: str) -> None:
    """The version that the README names is the one in package.json."""
    pinned: dict[str, Any] = json.loads((NODE / "package.json").read_text())["dependencies"]
    assert f"{client} {pinned[client]}" in README


def test_the_extensions_listed_are_those_offered() -> None:
    """The page's list is `Tus-Extension`."""
    listed = PROTOCOLS.partition("Extensions: ")[2].partition(".")[0]
    assert re.findall(r"`([a-z-]+)`", listed) == list(EXTENSIONS)


def test_the_checksums_listed_are_those_offered() -> None:
    """The page's list is `Tus-Checksum-Algorithm`."""
    listed = PROTOCOLS.partition("Checksums: ")[2].partition(".")[0]
    assert re.findall(r"`([a-z0-9-]+)`", listed) == list(ALGORITHMS)


def test_the_refusals_listed_are_those_there_are() -> None:
    """Each slug stands in the table with its usual status and whether to retry, in one row."""
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d+) \| (yes|no) \|", PROTOCOLS, re.MULTILINE)
    kinds = [(kind.slug, str(kind.status), "yes" if kind.retry else "no") for kind in KINDS.values()]
    assert sorted(rows) == sorted(kinds)
