"""A process that is told to stop while it starts on a store that does not answer."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.e2e.process import ROOT, ServiceProcess
from tests.e2e.s3_service import on_bucket
from tests.stores.faults import hang
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store


def test_a_start_that_waits_for_its_store_can_be_stopped(
    tmp_path: Path, store: Store, bucket: str, faulty: FaultyStore
) -> None:
    """SIGTERM ends it within seconds, though a call to the store hangs on."""
    faulty.fault(None, times=None, what=hang())
    settings = on_bucket(store, bucket) | {"ATTACHD_S3_ENDPOINT": faulty.endpoint}
    environment = ServiceProcess(tmp_path, **settings).environment
    with subprocess.Popen(
        [sys.executable, "-m", "service", "serve"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            faulty.wait_for("head_bucket", timeout=30)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=25)
        finally:
            process.kill()
    # the call would hang for half a minute
    assert time.monotonic() - began < 25
    assert "Traceback" not in said
    assert "service_started" not in said
