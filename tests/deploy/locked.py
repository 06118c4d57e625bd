"""The service's command line in a process that may have no memory which is both written and run.

The kernel's lock (Linux 6.3) is what systemd's `MemoryDenyWriteExecute` asks for where there is one. It
is inherited by what the process starts.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from typing import Final

PR_SET_MDWE: Final = 65
PR_MDWE_REFUSE_EXEC_GAIN: Final = 1


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    # a kernel without the lock is not what the test is about: the service runs there all the same
    if libc.prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) and ctypes.get_errno() != errno.EINVAL:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_MDWE)")
    os.execv(sys.executable, [sys.executable, "-m", "service", *sys.argv[1:]])


if __name__ == "__main__":
    main()
