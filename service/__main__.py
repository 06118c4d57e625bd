"""`python -m service` is `attachd`."""

from service.cli import main

main()
