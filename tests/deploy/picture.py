"""docs/dashboard.png: the dashboard's own queries, of a real Prometheus that watched a real service.

    python -m pip install matplotlib
    python -m tests.deploy.picture [--seconds 240] [--out docs/dashboard.png]

It starts a service of two workers, an endpoint for its events, and a Prometheus (which must be on
the PATH) with deploy/prometheus' rules; then clients upload and download over loopback, at a pace
that leaves the machine room. Every third upload is cut on its way and resumed, a few bodies do not
fit their checksum, and once a worker is killed. Afterwards the panels are drawn as Grafana would,
and what Prometheus saw is printed beside what the clients counted.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import http.client
import io
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from tests.deploy.instruments import ROOT
from tests.e2e.listening import backend
from tests.e2e.process import ServiceProcess
from tests.ports import free_port

DASHBOARD: Final = ROOT / "deploy" / "grafana" / "dashboards" / "attachd.json"
RULES: Final = ROOT / "deploy" / "prometheus" / "alerts.yaml"
SCRAPE_SECONDS: Final = 2
#: what `$__rate_interval` stands for in the queries
RATE: Final = "10s"
#: how long nothing happens before and after, so that all is scraped
CALM_SECONDS: Final = 12.0
PIECE: Final = 256 * 1024
#: bytes a second of each client
PACE: Final = 4 * 2**20
CLIENTS: Final = 6
SIZES: Final = (300_000, 2 * 2**20, 9 * 2**20, 30 * 2**20)
#: what is drawn, by title: what a README has room for
SHOWN: Final = (
    "Throughput", "Speed of a transfer", "How transfers end", "Requests", "From made to ready", "Resumed, by pause",
    "Waste", "Checksums of clients", "Time of a call", "Event loop lag", "Workers", "Deliveries",
)  # fmt: skip
#: smaller files are sent with a checksum, larger ones may be cut
CHECKED_BELOW: Final = 2**20
#: how long a client asks for the offset of an upload whose worker was killed
PATIENCE_SECONDS: Final = 30.0
TUS: Final = {"Tus-Resumable": "1.0.0"}


@dataclass
class Counted:
    """What clients know: bytes that were acknowledged, or came."""

    acknowledged: int = 0
    downloaded: int = 0
    finished: int = 0
    began: float = field(default_factory=time.time)
    ended: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, **counts: int) -> None:
        with self.lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)


class Client:
    """Uploads and downloads at its pace until told to end."""

    def __init__(self, service: ServiceProcess, number: int, counted: Counted, until: float) -> None:
        self._service = service
        self._random = random.Random(number)
        self._counted = counted
        self._until = until
        self._count = number

    def run(self) -> None:
        while time.time() < self._until:
            # what is made or fetched while a worker is killed is left
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._once()

    def _once(self) -> None:
        self._count += 1
        size = self._random.choice(SIZES)
        content = self._random.randbytes(PIECE) * (size // PIECE + 1)
        length = {"Upload-Length": str(size)}
        status, headers = self._ask("POST", self._service.mint_upload(max_size=size), TUS | length)
        assert status == 201, status
        place = headers["Location"]
        if size < CHECKED_BELOW and self._count % 4 == 0:
            wrong = base64.b64encode(hashlib.sha1(b"other").digest()).decode()
            self._patch(place, 0, content[:size], size, checksum=wrong)
        offset = 0
        while offset < size:
            # a body with a checksum counts as a whole or not at all
            cut = size // 2 if offset == 0 and self._count % 3 == 0 and size >= CHECKED_BELOW else size
            right = base64.b64encode(hashlib.sha1(content[:size]).digest()).decode() if size < CHECKED_BELOW else None
            before = offset
            headers = self._patch(place, offset, content[offset:cut], size - offset, checksum=right)
            offset = int(headers["Upload-Offset"])
            self._counted.add(acknowledged=offset - before)
        self._counted.add(finished=1)
        if self._count % 2 and "Attachd-File-Id" in headers:
            self._fetch(headers["Attachd-File-Id"])

    def _patch(self, place: str, offset: int, body: bytes, claimed: int, checksum: str | None = None) -> Any:
        """What the answer says; after a cut, what a HEAD does."""
        line = http.client.HTTPConnection(*self._service.address, timeout=30)
        with contextlib.closing(line):
            line.putrequest("PATCH", urllib.parse.urlsplit(place).path)
            fields = TUS | {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
            fields["Content-Length"] = str(claimed)
            if checksum is not None:
                fields["Upload-Checksum"] = f"sha1 {checksum}"
            for name, value in fields.items():
                line.putheader(name, value)
            with contextlib.suppress(OSError, http.client.HTTPException):
                line.endheaders()
                for at in range(0, len(body), PIECE):
                    line.send(body[at : at + PIECE])
                    time.sleep(PIECE / PACE)
                if len(body) == claimed:
                    answer = line.getresponse()
                    answer.read()
                    if answer.status == 204:
                        return answer.headers
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(self._random.uniform(0.2, 2))
            with contextlib.suppress(OSError):
                return self._ask("HEAD", place, TUS)[1]
        raise TimeoutError

    def _fetch(self, file_id: str) -> None:
        with urllib.request.urlopen(self._service.mint_download(file_id), timeout=30) as answer:
            while piece := answer.read(PIECE):
                self._counted.add(downloaded=len(piece))
                time.sleep(PIECE / PACE / 2)

    def _ask(self, method: str, url: str, headers: dict[str, str]) -> tuple[int, Any]:
        request = urllib.request.Request(url, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            answer.read()
            return answer.status, answer.headers


@contextlib.contextmanager
def prometheus(directory: Path, target: str) -> Iterator[str]:
    """The address of one that scrapes the target, with the rules of deploy/."""
    server = shutil.which("prometheus")
    assert server is not None, "prometheus is not on the PATH (Debian: apt-get install prometheus)"
    port = free_port()
    # the rules as they are, as often as they are looked at in a day of a few minutes
    written = {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "attachd", "static_configs": [{"targets": [target]}]}],
    }
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(written))
    arguments = [
        f"--config.file={directory / 'prometheus.yaml'}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([server, *arguments], stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/-/ready", timeout=1):
                break
            assert time.monotonic() < deadline, (directory / "prometheus.log").read_text()
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def query(url: str, path: str, **fields: str) -> list[dict[str, Any]]:
    """What Prometheus finds."""
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(fields)}", timeout=30) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found


def filled(expression: str) -> str:
    return expression.replace("$__rate_interval", RATE).replace("$job", "attachd")


def legend(pattern: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        pattern = pattern.replace("{{" + name + "}}", value)
    return pattern


def draw(url: str, counted: Counted, out: Path) -> None:
    """The panels in SHOWN, over the whole run."""
    import matplotlib as mpl  # noqa: PLC0415 - whoever draws installs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    panels = {panel["title"]: panel for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"]}
    plt.style.use(["dark_background", {"axes.prop_cycle": mpl.cycler(color=mpl.color_sequences["tab10"])}])
    figure, places = plt.subplots(4, 3, figsize=(15, 13), dpi=90, layout="constrained")
    start, end = counted.began - CALM_SECONDS, counted.ended + CALM_SECONDS
    for axes, title in zip(places.flat, SHOWN, strict=True):
        panel = panels[title]
        unit = panel["fieldConfig"]["defaults"]["unit"]
        # so that the marks at the axis are round
        scale = 2**20 if unit == "Bps" else 1
        for target in panel["targets"]:
            found = query(
                url,
                "query_range",
                query=filled(target["expr"]),
                start=str(start),
                end=str(end),
                step=str(SCRAPE_SECONDS),
            )
            for series in found:
                points = [(float(at) - counted.began, float(value) / scale) for at, value in series["values"]]
                axes.plot(
                    *zip(*points, strict=True), label=legend(target["legendFormat"], series["metric"]), linewidth=1.3
                )
        axes.set_title(title, fontsize=12, loc="left")
        axes.set_ylim(bottom=0)
        axes.set_xlim(start - counted.began, end - counted.began)
        axes.yaxis.set_major_formatter(lambda value, _, unit=unit: label(value, unit))
        axes.grid(alpha=0.2)
        axes.tick_params(labelsize=9)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, loc="upper left", framealpha=0.4)
    for axes in places[-1]:
        axes.set_xlabel("seconds", fontsize=9)
    whole = io.BytesIO()
    figure.savefig(whole)
    # lines on black need few colours, and a third of the bytes
    Image.open(whole).convert("RGB").quantize(64).save(out, optimize=True)


def label(value: float, unit: str) -> str:
    """A number at an axis, as Grafana writes units."""
    match unit:
        case "Bps":
            return f"{value:.3g} MiB/s"
        case "percentunit":
            return f"{100 * value:.3g} %"
        case "s":
            return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
        case "reqps" | "ops":
            return f"{value:.3g}/s"
    return f"{value:.3g}"


def report(url: str, counted: Counted, at: float) -> None:
    """What Prometheus saw beside what clients counted, in bytes and over the same time."""
    seconds = counted.ended - counted.began
    for name, metric, count in (
        ("in", "attachd_upload_bytes_committed_total", counted.acknowledged),
        ("out", "attachd_download_bytes_sent_total", counted.downloaded),
    ):
        seen = float(query(url, "query", query=f"sum({metric})", time=str(at))[0]["value"][1])
        rate = f"sum(rate({metric}[{RATE}]))"
        values = query(url, "query_range", query=rate, start=str(counted.began), end=str(at), step=str(SCRAPE_SECONDS))[
            0
        ]["values"]
        area = sum(float(value) for _, value in values) * SCRAPE_SECONDS
        print(
            f"{name}: clients counted {count} bytes in {seconds:.0f} s, {count / seconds / 2**20:.2f} MiB/s;"
            f" the counter has {seen:.0f} ({seen / count - 1:+.2%}),"
            f" the panel's rates come to {area / seconds / 2**20:.2f} MiB/s ({area / count - 1:+.2%})"
        )
    received = float(query(url, "query", query="sum(attachd_upload_bytes_received_total)", time=str(at))[0]["value"][1])
    print(f"received {received:.0f} bytes; uploads finished, as clients count: {counted.finished}")
    firing = query(url, "query", query='ALERTS{alertstate="firing"}', time=str(at))
    print("alerts that fire at the end:", sorted(series["metric"]["alertname"] for series in firing))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240, help="how long clients are at work")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "dashboard.png")
    chosen = parser.parse_args()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        chat = stack.enter_context(backend())
        service = stack.enter_context(
            ServiceProcess(directory / "service", ATTACHD_WORKERS="2", ATTACHD_CONFIG=chat.settings_file(directory))
        )
        url = stack.enter_context(prometheus(directory, f"127.0.0.1:{service.ops_port}"))
        time.sleep(CALM_SECONDS)
        counted = Counted()
        until = counted.began + chosen.seconds
        threads = [threading.Thread(target=Client(service, number, counted, until).run) for number in range(CLIENTS)]
        for number, thread in enumerate(threads):
            thread.start()
            # one after the other, so that a rise is to be seen
            time.sleep(chosen.seconds / 20 if number < CLIENTS - 1 else 0)
        time.sleep(chosen.seconds / 4)
        os.kill(min(service.workers().values()), signal.SIGKILL)
        for thread in threads:
            thread.join()
        counted.ended = time.time()
        time.sleep(CALM_SECONDS)
        report(url, counted, time.time())
        draw(url, counted, chosen.out)


if __name__ == "__main__":
    main()
