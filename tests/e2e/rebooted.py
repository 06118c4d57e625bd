"""`attachd` on a machine whose boot id a test chooses: `python -m tests.e2e.rebooted FILE serve`."""

from __future__ import annotations

import sys
from pathlib import Path

from service import cli, crashes

if __name__ == "__main__":
    crashes.BOOT_ID = Path(sys.argv.pop(1))
    cli.main()
