"""The OpenAPI 3.1 description of the public listener, made from what serves it: models, routes, problems.

The control API is described to the last field. Uploads and downloads follow published protocols,
so their operations say which, what each is for and what may come back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from service import control_models as models
from service.control_routes import ROUTES, Param, Route
from service.links import SERVICE_SCOPES
from service.protocol.problems import KINDS

_SCHEMAS: Final = "#/components/schemas/"
#: what any request may be answered with, besides what its operation names
_ALWAYS: Final = ("bad-request", "bad-link", "wrong-scope", "origin-refused")
#: of the values in paths
_PATH: Final = {
    "file_id": ("^f_[a-z2-7]{26}$", "A file's id."),
    "upload_id": ("^u_[a-z2-7]{26}$", "An upload's id, which is all that is needed to go on with it or to end it."),
    "job_id": ("^j_[a-z2-7]{26}$", "A job's id."),
    "owner": ("^[A-Za-z0-9._:@-]{1,128}$", "An owner, as the `sub` of its links has it."),
    "ref": ("^[!-~]{1,256}$", "A reference: 1 to 256 printable characters, percent-encoded; slashes may stand."),
    "name": ("^[^/]{1,255}$", "For people; nothing depends on it."),
}
_TUS: Final = {"name": "Tus-Resumable", "in": "header", "required": True, "schema": {"const": "1.0.0"}}
#: answers to HEAD
_BODILESS: Final = ("findUpload", "inspectUpload", "inspectDownload", "inspectDownloadNamed")
_WAIT: Final = {
    "name": "wait",
    "in": "query",
    "schema": {"type": "number", "minimum": 0},
    "description": "Seconds to hold the answer until there is news, 20 at most.",
}


def document(version: str) -> dict[str, Any]:
    """The whole description. `version` is the service's."""
    components: dict[str, Any] = {}
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, components)
    _schema(models.ProblemDetails, components)
    paths |= _uploads() | _downloads() | _itself()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "attachd",
            "version": version,
            "description": "Resumable uploads for chat attachments, behind signed links. Instants are whole seconds "
            "since 1970, sizes are bytes. Retry 409, 423, 429, 503, 507 and other 5xx; other 4xx are final.",
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "securitySchemes": {
                "service": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "A service token, typ svc+jwt, with scopes of: " + ", ".join(SERVICE_SCOPES) + ".",
                },
                "link": {
                    "type": "apiKey",
                    "in": "query",
                    "name": "sig",
                    "description": "The token of a signed link; `Authorization: Bearer` does as well.",
                },
            },
        },
    }


def _schema(model: type[models.Answer | models.Asked], components: dict[str, Any]) -> dict[str, str]:
    """A reference to the model's schema, which is among the components from now on."""
    made = model.model_json_schema(ref_template=_SCHEMAS + "{model}")
    components.update(made.pop("$defs", {}))
    components[model.__name__] = made
    return {"$ref": _SCHEMAS + model.__name__}


def _operation(route: Route, components: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": route.operation,
        "summary": route.summary,
        "description": f"Needs the scope `{route.scope}`. Sees what belongs to the issuer of the token's key.",
        "tags": ["control"],
        "security": [{"service": []}],
        "parameters": [*_path_parameters(route.path), *map(_parameter, route.query)],
        "responses": {str(route.status): _success(route, components), **_refusals((*_ALWAYS, *route.problems))},
    }
    if route.asks is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _schema(route.asks, components)}},
        }
        described["parameters"].append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
                "description": "The same request with the same key has the same answer for 24 h.",
            }
        )
    return described


def _success(route: Route, components: dict[str, Any]) -> dict[str, Any]:
    if route.answer is None:
        return {"description": "Done."}
    content = {"application/json": {"schema": _schema(route.answer, components)}}
    return {"description": (route.answer.__doc__ or "").partition("\n")[0], "content": content}


def _parameter(param: Param) -> dict[str, Any]:
    return {
        "name": param.name,
        "in": "query",
        "required": param.required,
        "description": param.description,
        "schema": {"type": "string", "pattern": f"^({param.pattern})$"},
    }


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": words,
            "schema": {"type": "string", "pattern": pattern},
        }
        for name, (pattern, words) in _PATH.items()
        if f"{{{name}}}" in path
    ]


def _refusals(slugs: Iterable[str]) -> dict[str, Any]:
    """The named problems by status, and that every other refusal looks alike."""
    content = {"application/problem+json": {"schema": {"$ref": _SCHEMAS + "ProblemDetails"}}}
    by_status: dict[str, list[str]] = {}
    for slug in slugs:
        by_status.setdefault(str(KINDS[slug].status), []).append(slug)
    answers = {
        status: {
            "description": "; ".join(f"`{slug}`: {KINDS[slug].title.lower()}" for slug in named) + ".",
            "content": content,
        }
        for status, named in sorted(by_status.items())
    }
    others = {"4XX": "Refused; `type` says why.", "5XX": "Not now; try again after `Retry-After`."}
    return answers | {status: {"description": words, "content": content} for status, words in others.items()}


# --- what has a protocol of its own ---------------------------------------------------------


def _told(
    operation: str, summary: str, description: str, answers: dict[str, str], problems: tuple[str, ...], **more: Any
) -> dict[str, Any]:
    """An operation in words."""
    refusals = _refusals(problems)
    if operation in _BODILESS:
        refusals = {status: {"description": refusal["description"]} for status, refusal in refusals.items()}
    responses = {status: {"description": words} for status, words in answers.items()} | refusals
    return {"operationId": operation, "summary": summary, "description": description, "responses": responses, **more}


def _uploads() -> dict[str, Any]:
    link: list[dict[str, list[str]]] = [{"link": []}]
    tags = ["uploads"]
    opened = ("bad-link", "link-expired", "link-used", "type-refused", "too-large", "quota-exceeded", "storage-full")
    bytes_in: dict[str, Any] = {"content": {"application/offset+octet-stream": {}}}
    upload = {"tags": tags, "parameters": [_TUS], "security": []}
    return {
        "/files": {
            "options": _told(
                "discover", "What is served.", "tus 1.0.0, OPTIONS; and CORS preflights. Needs no token.",
                {"200": "`Tus-Version`, `Tus-Extension`, `Tus-Max-Size`, `Tus-Checksum-Algorithm`."}, (), tags=tags,
                security=[],
            ),
            "post": _told(
                "createUpload", "Make the upload of a link.",
                "tus 1.0.0, Creation, Creation With Upload, Creation Defer Length, Concatenation and Checksum. A link "
                "of one use gives the same upload however often it is asked for.",
                {"201": "`Location` is the upload; `Upload-Offset` how far it is."}, opened, tags=tags, security=link,
                parameters=[_TUS], requestBody=bytes_in,
            ),
            "put": _told(
                "put", "Upload a whole file without tus.",
                "For clients that speak no upload protocol; what came before a cut can be finished with tus.",
                {"201": "The file is stored; the body is the upload's status."}, opened, tags=tags, security=link,
                requestBody={"content": {"*/*": {}}},
            ),
            "head": _told(
                "findUpload", "Find the upload that a link of one use has made.", "`Location` and `Upload-Offset`.",
                {"204": "There is one."}, ("bad-link", "not-found", "gone", "locked"), tags=tags, security=link,
            ),
        },
        "/files/{upload_id}": {
            "parameters": _path_parameters("{upload_id}"),
            "head": _told(
                "inspectUpload", "How far the upload is.",
                "tus 1.0.0, HEAD. While the upload lives the answer is 200, or 423 for any trouble: ask again.",
                {"200": "`Upload-Offset` is where to go on."}, ("not-found", "gone", "locked"), **upload,
            ),
            "patch": _told(
                "append", "Send bytes from an offset on.",
                "tus 1.0.0, PATCH, Checksum. The newest request takes over from an older one. The answer to the last "
                "byte has `Attachd-File-Id`.",
                {"204": "`Upload-Offset` is how far the upload is now."},
                ("not-found", "gone", "locked", "offset-mismatch", "checksum-mismatch", "storage-full"),
                requestBody=bytes_in, **upload,
            ),
            "delete": _told(
                "terminateUpload", "End the upload, with the file it made.", "tus 1.0.0, Termination.",
                {"204": "It is gone."}, ("not-found", "gone", "locked"), **upload,
            ),
            "get": _told(
                "uploadStatus", "The upload's status as JSON.", "Takes no lock.", {"200": "The status."},
                ("not-found", "gone", "locked"), tags=tags, security=[], parameters=[_WAIT],
            ),
        },
    }  # fmt: skip


def _downloads() -> dict[str, Any]:
    more: dict[str, Any] = {"tags": ["downloads"], "security": [{"link": []}], "parameters": [_WAIT]}
    told = {
        "200": "The bytes, with a strong `ETag`.",
        "206": "The range asked for.",
        "304": "The client has it.",
        "307": "The bytes are at the store, with download_mode redirect.",
    }
    refused = ("bad-link", "wrong-scope", "gone", "not-ready", "range-not-satisfiable", "precondition-failed")
    words = "RFC 9110: `Range`, `If-Range`, `If-None-Match`, `If-Modified-Since`. An expired link is 403."
    return {
        path: {
            "parameters": _path_parameters(path),
            "get": _told(f"download{suffix}", "Fetch a file.", words, told, refused, **more),
            "head": _told(f"inspectDownload{suffix}", "What fetching would give.", words, told, refused, **more),
        }
        for path, suffix in (("/d/{file_id}", ""), ("/d/{file_id}/{name}", "Named"))
    } | {
        "/d/{file_id}/manifest": {
            "parameters": _path_parameters("{file_id}"),
            "get": _told(
                "manifest", "The hashes of the file's blocks.", "To verify a file, or what of it was fetched.",
                {"200": "The manifest."}, refused[:4], **more,
            ),
        }
    }  # fmt: skip


def _itself() -> dict[str, Any]:
    words = "OpenAPI 3.1. Needs no token."
    return {"/openapi.json": {"get": _told("describe", "This description.", words, {"200": "It."}, (), security=[])}}
