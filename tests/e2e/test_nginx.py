"""The nginx recipe of docs/protocols.md, with a real nginx."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import require
from tests.e2e.process import ROOT, ServiceProcess, free_port

RECIPE = re.search(r"```nginx\n(.*?)```", (ROOT / "docs" / "protocols.md").read_text("utf-8"), re.DOTALL)


@contextmanager
def nginx(folder: Path, port: int, service: ServiceProcess) -> Iterator[None]:
    """nginx with the recipe, its addresses and directories replaced by the test's."""
    assert RECIPE is not None
    recipe = RECIPE[1].replace("127.0.0.1:8080", f"127.0.0.1:{service.port}")
    recipe = recipe.replace("/var/lib/attachd/", f"{service.data}/")
    user = "user root;" if os.geteuid() == 0 else ""
    conf = folder / "nginx.conf"
    conf.write_text(
        f"daemon off; {user} pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n"
        f"server {{ listen 127.0.0.1:{port};\n{recipe}\n}} }}\n"
    )
    process = subprocess.Popen(["nginx", "-c", str(conf), "-e", f"{folder}/error.log"])
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def test_k2_the_nginx_recipe_streams_up_and_sends_files_down(tmp_path: Path) -> None:
    """Through the recipe an upload and a download work, nginx sends the bytes, and the guarding headers are there."""
    require("nginx")
    port = free_port()
    content = os.urandom(3_000_000)
    source = tmp_path / "a.bin"
    source.write_bytes(content)
    url = f"http://127.0.0.1:{port}"
    settings = {"ATTACHD_PUBLIC_URL": url, "ATTACHD_DOWNLOAD_MODE": "accel"}
    with ServiceProcess(tmp_path, **settings) as service, nginx(tmp_path, port, service):
        link = service.mint_upload(base=url, max_size=len(content))
        put = subprocess.run(
            [sys.executable, "-m", "service", "put", str(source), link], cwd=ROOT, env=service.environment,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        with urllib.request.urlopen(service.mint_download(put.stdout.strip(), base=url)) as answer:
            assert answer.read() == content
            assert answer.headers["Server"].startswith("nginx")
            assert answer.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert service.metrics().get('attachd_download_bytes_sent_total{mode="sendfile"}', 0) == 0
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/_attachd/files/").close()
