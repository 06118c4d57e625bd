"""What a service holds of memory and descriptors, before something is done to it and after."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from tests.e2e.lines import create, download, finish, until

if TYPE_CHECKING:
    from tests.e2e.process import ServiceProcess

MIB: Final = 2**20
#: what a file of the database may add whatever is done
SLACK_DESCRIPTORS: Final = 3


class Cost:
    """What a service held before something was done to it, and holds after."""

    def __init__(self, service: ServiceProcess) -> None:
        self._service = service
        content = os.urandom(MIB)
        url = create(service, len(content))
        finish(service, url, content)
        assert download(service, url) == content
        self.rss, self.descriptors = service.rss(), service.descriptors()

    def bytes_more(self) -> int:
        return self._service.rss() - self.rss

    def all_closed(self) -> bool:
        return self._service.descriptors() <= self.descriptors + SLACK_DESCRIPTORS

    def assert_over(self, most_bytes: int) -> None:
        """All is closed in the end, and little memory has stayed."""
        until(self.all_closed, "all descriptors are given back")
        assert self.bytes_more() < most_bytes
