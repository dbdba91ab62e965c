"""A stream's chunks go straight to the server: three layers look at the head of an answer alone."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable
from typing import Any, cast

from litestar import Litestar
from litestar.types import Message, Scope, Send

from api.tracing import RequestSpans
from worker.wire.logs import REQUEST_ID

_SERVERS_SEND = "dfastllm_send"
_HARMLESS = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class ServerApp(Litestar):
    """Litestar, with the server's own `send` kept where a stream finds it, and a name a request."""

    spans: RequestSpans | None = None  # where traces are asked for

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope[_SERVERS_SEND] = send
        if scope["type"] == "http":
            REQUEST_ID.set(_request_id(scope))
        try:
            if scope["type"] == "http" and self.spans is not None:
                await self.spans.around(super().__call__, scope, receive, send)
            else:
                await super().__call__(scope, receive, send)
        finally:
            # It is of an object that has the scope: the circle would keep bodies for the collector.
            del scope[_SERVERS_SEND]


def _request_id(scope: Scope) -> str:
    """Return the client's own id where it is harmless to repeat, or a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _HARMLESS.fullmatch(given := value.decode("latin-1")):
            return given
    return f"req_{uuid.uuid4().hex}"


def past_the_layers(scope: Scope, send: Send) -> Send:
    """Return a `send` that gives the body, and only that, to the server without a detour.

    Each layer costs a coroutine for each token; what they do is done once the head has passed.
    """
    servers_send = cast("dict[str, Send]", scope).get(_SERVERS_SEND, send)

    def send_body_directly(message: Message) -> Awaitable[None]:
        return (servers_send if message["type"] == "http.response.body" else send)(message)

    return cast(Send, send_body_directly)
