"""With this directory on PYTHONPATH every service that a test starts as a process has all bodies parsed by aiohttp."""

import sys

if "serve" in sys.orig_argv:
    from service.web import connection

    connection.DIRECT = False
