"""Whether a backend allows an upload: asked before it is made, and before its file is (contract, section 9).

The question is signed JSON as events are. 2xx allows. A 4xx refuses, and its JSON `detail` is told
to the client; but for those that say nothing of the upload (a hook that is not there, not logged in,
too busy), which are a failure like any other answer, and like none in time. What a failure comes to
is the hook's `on_failure`: `open` lets the upload pass, `closed` has the client, and for a file the
janitor too, ask again later. An upload may so be asked about more than once; its refusal is stored
(lesson C6) and final.

A hook sees what the link allows and what the client says of the file. It never sees a token, an
address that grants anything, or a header.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Final

import structlog

from service.clock import Clock
from service.endpoints import Hook, HookName, HookSet
from service.events import render_instant
from service.metrics import Metrics
from service.model import File, LinkTerms, Upload
from service.outward import Answer, Sender, Unsent
from service.protocol.intents import Create
from service.protocol.problems import Problem, Refusal, refuse

log = structlog.get_logger(__name__)

#: client errors that say nothing of the upload
_NOT_ABOUT_IT: Final = frozenset({401, 404, 405, 407, 408, 410, 421, 425, 429})
_MOST_DETAIL: Final = 200
_RETRY_SECONDS: Final = 5


class Hooks:
    """Asks those that there are.

    Args:
        new_id: makes the id of a question.
    """

    def __init__(
        self, sender: Sender, hooks: HookSet, clock: Clock, metrics: Metrics, new_id: Callable[[], str]
    ) -> None:
        self._sender = sender
        self._hooks = hooks
        self._clock = clock
        self._metrics = metrics
        self._new_id = new_id
        there: dict[HookName, Hook | None] = {"pre_create": hooks.pre_create, "pre_finish": hooks.pre_finish}
        metrics.expect_endpoints([name for name, hook in there.items() if hook is not None])

    @property
    def asks(self) -> bool:
        """Whether there is anybody to be asked."""
        return self._hooks.pre_create is not None or self._hooks.pre_finish is not None

    async def before_creation(self, intent: Create, terms: LinkTerms, length: int | None) -> None:
        """Returns if the upload may be made.

        Raises:
            Refusal: hook-refused; hook-unavailable, worth a retry.
        """
        hook = self._hooks.pre_create
        if hook is None:
            return
        about = {
            "protocol": intent.protocol,
            "length": length,
            "type": intent.media_type,
            "filename": intent.filename,
            "metadata": _pairs(intent.metadata),
            "concat": intent.concat_kind,
            "file_id": terms.file_id,
            "max": terms.max_size,
            "size": terms.size,
            "types": list(terms.types),
        }
        problem = await self._ask("pre_create", hook, about | _of_link(terms))
        if problem is not None:
            raise Refusal(problem)

    async def before_file(self, file: File, upload: Upload) -> Problem | None:
        """Why there must be no file; None: there may.

        Raises:
            Refusal: hook-unavailable, worth a retry.
        """
        hook = self._hooks.pre_finish
        if hook is None:
            return None
        about = {
            "protocol": upload.protocol,
            "upload_id": upload.id,
            "file_id": file.id,
            "size": file.manifest.size,
            "type": file.media_type,
            "sniffed_type": file.sniffed_type,
            "filename": file.filename,
            "metadata": _pairs(upload.metadata),
            "root": file.manifest.root.hex(),
            "sha256": file.sha256,
        }
        return await self._ask("pre_finish", hook, about | _of_link(upload.terms))

    async def _ask(self, name: HookName, hook: Hook, about: dict[str, object]) -> Problem | None:
        question_id = self._new_id()
        question = {
            "type": f"hook.{name}",
            "timestamp": render_instant(self._clock.now()),
            "id": question_id,
            "data": about,
        }
        payload = json.dumps(question, separators=(",", ":"))
        try:
            answer = await self._sender.post(hook, question_id, payload, seconds=hook.budget)
            result, came = answer.result, str(answer.status)
        except Unsent as error:
            answer, result, came = None, error.result, error.detail
        self._metrics.webhook_delivered(name, result)
        if answer is not None and result == "ok":
            return None
        if answer is not None and answer.status // 100 == 4 and answer.status not in _NOT_ABOUT_IT:
            log.info("hook_refused", hook=name, question_id=question_id, code=answer.status)
            return Problem("hook-refused", _detail(answer), close=True)
        log.warning(
            "hook_failed", hook=name, question_id=question_id, reason=result, came=came, on_failure=hook.on_failure
        )
        if hook.on_failure == "open":
            return None
        raise refuse("hook-unavailable", "ask again later", retry_after=_RETRY_SECONDS, close=True)


def _of_link(terms: LinkTerms) -> dict[str, object]:
    return {
        "issuer": terms.issuer,
        "owner": terms.owner,
        "refs": [terms.ref] if terms.ref else [],
        "meta": terms.meta or {},
    }


def _pairs(raw: str | None) -> dict[str, str]:
    """`Upload-Metadata` as the client meant it; its form was checked when it came."""
    if raw is None:
        return {}
    pairs = (entry.strip(" \t").partition(" ") for entry in raw.split(","))
    return {key: base64.b64decode(value).decode("utf-8", "replace") for key, _, value in pairs}


def _detail(answer: Answer) -> str:
    """The backend's words for the client, if there are any."""
    try:
        said = json.loads(answer.body)
    except ValueError:
        said = None
    words = said.get("detail") if isinstance(said, dict) else None
    if not isinstance(words, str):
        return "the upload was refused"
    return "".join(letter for letter in words if letter.isprintable())[:_MOST_DETAIL] or "the upload was refused"
