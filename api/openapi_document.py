"""Completes litestar's OpenAPI document: errors, headers, keys, streams, forms and examples.

Litestar reads handlers; what guards, error handlers and streams answer it cannot see there.
"""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import msgspec

from api.errors import ErrorBody
from api.openapi_examples import ANSWERS, BODIES, ERROR, FORMS
from api.openapi_streams import STREAMS

Document = dict[str, Any]

# Of each event, as tools read it; OpenAPI has no word for a stream of them before 3.2.
_EVENT = {
    "type": "object",
    "description": "One server-sent event; the last of a completion's says [DONE].",
    "properties": {name: {"type": "string"} for name in ("event", "id", "data")},
    "required": ["data"],
}
_WORDS = {
    400: "The request is wrong; `param` names the field.",
    401: "The API key is missing or wrong.",
    404: "There is nothing of this name.",
    409: "What it is about is not in a state for it.",
    413: "The body is too large.",
    415: "The body has another media type than this endpoint takes.",
    422: "The Idempotency-Key stands for another request.",
    429: "Too much at once; see Retry-After.",
    500: "The server failed.",
    503: "Nobody can serve this now; see Retry-After.",
    504: "It waited or ran too long.",
    507: "The server's disk is full, or refuses.",
}
_GENERATING = ("/v1/completions", "/v1/fim/completions", "/v1/chat/completions", "/v1/responses")
_ENQUEUING = (*_GENERATING, "/v1/jobs")
_CONFLICTING = (
    ("post", "/v1/responses"), ("post", "/v1/responses/{response_id}/cancel"),
    ("delete", "/v1/responses/{response_id}"), ("post", "/v1/batches/{batch_id}/cancel"),
)  # fmt: skip
_NEEDS_NOTHING = ("/health", "/version")


def complete(document: Document) -> Document:
    """Return the document with all in it that the server answers; `document` stays as it is."""
    whole: Document = msgspec.json.decode(msgspec.json.encode(document))
    whole["components"]["schemas"]["ErrorBody"] = _error_schema()
    for path, operations in whole["paths"].items():
        for method, operation in operations.items():
            _complete(operation, method, path)
    return whole


def _complete(operation: Document, method: str, path: str) -> None:
    has_key = "operation" not in operation["tags"]
    if has_key:
        operation["security"] = [{"key": []}]
    if form := FORMS.get((method, path)):
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": form}}
    elif body := BODIES.get((method, path)):
        operation["requestBody"]["content"]["application/json"]["example"] = body
    responses = operation["responses"]
    (success,) = (status for status in responses if status.startswith("2"))
    statuses = {int(status) for status in _statuses(operation, method, path, has_key)}
    operation["responses"] = {
        success: _success(responses[success], method, path),
        **{str(status): _error(status) for status in sorted(statuses)},
    }
    if method == "post" and path in _ENQUEUING:
        operation["parameters"] = [*operation.get("parameters", ()), _IDEMPOTENCY_KEY]


def _statuses(operation: Document, method: str, path: str, has_key: bool) -> Iterator[int]:
    yield 500
    if path not in _NEEDS_NOTHING:
        yield 503
    if has_key:
        yield 401
    if "requestBody" in operation:
        yield from (400, 413, 415, 404)
    if operation.get("parameters"):
        yield from (400, 404)
    if has_key and method == "post":
        yield 429
    if method == "post" and path in _ENQUEUING:
        yield 422
    if method == "post" and path in _GENERATING:
        yield 504
    if (method, path) in _CONFLICTING:
        yield 409
    if (method, path) == ("post", "/v1/files"):
        yield 507


def _success(response: Document, method: str, path: str) -> Document:
    content = response.setdefault("content", {})
    if stream := STREAMS.get((method, path)):
        content["text/event-stream"] = {"schema": _EVENT, "example": stream}
    if path.endswith("/events"):
        del content["application/json"]
    if path.endswith("/content"):
        response["content"] = {"application/octet-stream": {"schema": {}}}
    elif (method, path) in ANSWERS:
        (media,) = (name for name in content if name != "text/event-stream")
        content[media].pop("examples", None)
        content[media]["example"] = ANSWERS[method, path]
    names = ["X-Request-Id"]
    if method == "post" and path in _ENQUEUING:
        names += ["X-Job-Id", "Idempotent-Replayed"]
    if (method, path) == ("post", "/v1/jobs"):
        names.append("Location")
    if method == "post":
        names += _RATE_LIMITS
    response["headers"] = {name: _HEADERS[name] for name in names}
    return response


def _error(status: int) -> Document:
    names = ["X-Request-Id"]
    if status == 401:
        names.append("WWW-Authenticate")
    if status in (429, 503):
        names.append("Retry-After")
    schema = {"$ref": "#/components/schemas/ErrorBody"}
    return {
        "description": _WORDS.get(status, HTTPStatus(status).phrase),
        "headers": {name: _HEADERS[name] for name in names},
        "content": {"application/json": {"schema": schema, "example": ERROR}},
    }


def _error_schema() -> Document:
    """Return ErrorBody's schema in one piece."""
    _, parts = msgspec.json.schema_components([ErrorBody], ref_template="{name}")
    schema: Document = parts["ErrorBody"]
    schema["properties"]["error"] = parts["ErrorDetail"]
    return schema


def _header(words: str, kind: str = "string", *, is_sure: bool = False) -> Document:
    return {"description": words, "required": is_sure, "schema": {"type": kind}}


_RATE_LIMITS = [
    f"x-ratelimit-{what}-{of}"
    for of in ("requests", "tokens")
    for what in ("limit", "remaining", "reset")
]
_HEADERS = {
    "X-Request-Id": _header("The client's own, or one given here; in the logs too.", is_sure=True),
    "X-Job-Id": _header("The job that the request became; /v1/jobs knows it for a while."),
    "Idempotent-Replayed": _header("`true` where the key's first request had made the job."),
    "Location": _header("Where the job is."),
    "WWW-Authenticate": _header("`Bearer`."),
    "Retry-After": _header("Seconds.", "integer"),
    **{name: _header("Where this key has a limit.") for name in _RATE_LIMITS},
}
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Requests of the same key and body are one job, whose answer all get.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!#-~]+$"},
}
