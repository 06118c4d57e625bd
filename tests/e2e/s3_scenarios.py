"""What a client does with one upload into a bucket, and what must have come of it, wherever the service died.

Each is a `Scenario`: it prepares, does what may be killed within its second argument, and looks.
"""

from __future__ import annotations

import random
from contextlib import AbstractContextManager
from typing import Final
from urllib.parse import urlsplit

from tests.e2e.killing import Answer, Client, Sending

MIB: Final = 2**20
SOURCE: Final = random.Random(1).randbytes(12 * MIB)


def in_requests(client: Client, killed: AbstractContextManager[object]) -> None:
    """12 MiB in requests of 3, 4 and 5 MiB: no offset falls, the file is right, and one object is left."""
    with killed:
        sending = Sending(client, SOURCE)
        sending.create()
        for end in (3 * MIB, 7 * MIB, 12 * MIB):
            sending.send(end)
        sending.look()
    sending.download(SOURCE)
    assert client.left() == {f"{sending.name}/file": len(SOURCE)}


def resumed(client: Client, killed: AbstractContextManager[object]) -> None:
    """Two tails that a new process has to fetch, merged into a part by 3 MiB more; then the rest."""
    sending = Sending(client, SOURCE)
    sending.create()
    sending.send(3 * MIB)
    sending.send(4 * MIB)
    client.revive()
    with killed:
        sending.look()
        sending.send(7 * MIB)
        sending.send(12 * MIB)
        sending.look()
    sending.download(SOURCE)
    assert client.left() == {f"{sending.name}/file": len(SOURCE)}


def small(client: Client, killed: AbstractContextManager[object]) -> None:
    """64 KiB in the creation, repeated under the same link where no answer came: one file, one object."""
    size = send_small(client, killed)
    assert list(client.left().values()) == [size]


def send_small(client: Client, killed: AbstractContextManager[object]) -> int:
    """The file comes of one creation, however often that is sent, and is right; its size."""
    source = SOURCE[: 64 * 2**10]
    with killed:
        sending = Sending(client, source)
        sending.create(source)
        sending.send(len(source))
        sending.look()
    sending.download(source)
    return len(source)


def joined(client: Client, killed: AbstractContextManager[object]) -> None:
    """6 MiB and 1 MiB, joined: ready and right; the bucket has the file, and the partials' own objects."""
    final, partials = join(client, killed)
    whole = {f"{final.name}/file": 7 * MIB, f"{partials[0].name}/file": 6 * MIB}
    left = client.left()
    kept = [key for key in left if key.startswith(f"{partials[1].name}/")]
    assert left == whole | dict.fromkeys(kept, MIB)
    assert len(kept) == 1


def join(client: Client, killed: AbstractContextManager[object]) -> tuple[Sending, list[Sending]]:
    """A final upload of 6 MiB and 1 MiB that has become ready by itself and is right; and its partials."""
    first, second = SOURCE[: 6 * MIB], SOURCE[6 * MIB : 7 * MIB]
    partials: list[Sending] = []
    for source in (first, second):
        partial = Sending(client, source, partials[0].link if partials else None, Upload_Concat="partial")
        partial.create()
        partial.send(len(source))
        partials.append(partial)
    final = Sending(client, b"", partials[0].link)
    named = " ".join(urlsplit(partial.location).path for partial in partials)
    with killed:
        answer = client.surely("POST", final.link, Upload_Concat=f"final;{named}")
        assert answer.status == 201, answer
        final.location = answer.headers["Location"]
        client.until(lambda: b'"ready"' in client.surely("GET", final.location).body, "not ready")
    final.download(first + second)
    return final, partials


def terminated(client: Client, killed: AbstractContextManager[object]) -> None:
    """A part and a tail, then DELETE: the upload is gone, its link stays used, and the bucket is as it was."""
    sending = Sending(client, SOURCE)
    sending.create()
    sending.send(7 * MIB)
    with killed:
        answer = client.ask("DELETE", sending.location)
    _is_gone(client, sending, answer)


def terminated_file(client: Client, killed: AbstractContextManager[object]) -> None:
    """As before, with an upload that has become a file."""
    source = SOURCE[: 6 * MIB]
    sending = Sending(client, source)
    sending.create()
    sending.send(len(source))
    with killed:
        answer = client.ask("DELETE", sending.location)
    _is_gone(client, sending, answer)


def _is_gone(client: Client, sending: Sending, answer: Answer | None) -> None:
    """With all that there was of it, by a DELETE that is said again where no answer came."""
    if answer is None:
        assert client.surely("DELETE", sending.location).status in (204, 404)
    else:
        assert answer.status == 204, answer
    assert client.surely("HEAD", sending.location).status == 410
    assert client.surely("POST", sending.link, Upload_Length="5").status == 410
    client.until(lambda: not client.left(), "debris")


def expired(client: Client, killed: AbstractContextManager[object]) -> None:
    """A part and a tail that expire in seconds: the sweep leaves nothing, and the link makes another upload."""
    sending = Sending(client, SOURCE)
    sending.create()
    sending.send(7 * MIB)
    with killed:
        client.until(lambda: client.service.died() or not client.left(), "neither expired nor dead")
        if client.service.died():
            client.revive()
    assert client.surely("HEAD", sending.location).status == 410
    client.until(lambda: not client.left(), "debris")
    again = Sending(client, SOURCE, sending.link)
    again.create()
    assert again.location != sending.location
    assert client.surely("DELETE", again.location).status == 204
