"""A span for each request to /v1, from its head to the last byte of its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from litestar.types import ASGIApp, Message, Receive, Scope, Send

from worker.wire.logs import REQUEST_ID
from worker.wire.tracing import set_trace_context

if TYPE_CHECKING:
    from worker.wire.otel import OpenSpan, Tracing

TRACED = "/v1/"  # probes and scrapes come by the second and say nothing
_W3C = (b"traceparent", b"tracestate")


class RequestSpans:
    """Goes around the application; what it learns of an answer is in the answer's head."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    async def around(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith(TRACED):
            await app(scope, receive, send)
            return
        span = self._begin(scope)
        set_trace_context(span.carrier)
        status = 0

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await app(scope, receive, note_status)
        finally:
            _end(span, scope, status)

    def _begin(self, scope: Scope) -> OpenSpan:
        request = cast("dict[str, Any]", scope)
        method = request["method"]
        parent = {
            name.decode(): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in _W3C
        }
        # Neither path nor query: ids of files and jobs are their owners'. The route says enough.
        attributes = {
            "http.request.method": method,
            "url.scheme": request["scheme"],
            "dfastllm.request_id": REQUEST_ID.get(),
        }
        return self._tracing.begin(method, parent, "SERVER", attributes)


def _end(span: OpenSpan, scope: Scope, status: int) -> None:
    attributes: dict[str, str | int] = {}
    name = None
    if route := scope.get("path_template"):
        attributes["http.route"] = route
        name = f"{cast('dict[str, Any]', scope)['method']} {route}"
    if status:
        attributes["http.response.status_code"] = status
    # No answer at all: the client left, or this process is told to stop.
    error = str(status) if status >= 500 else None if status else "no_answer"
    span.end(attributes, name=name, error=error)
