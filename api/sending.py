"""A stream's chunks go straight to the server: three layers look at the head of an answer alone."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, cast

from litestar import Litestar
from litestar.types import Message, Scope, Send

_SERVERS_SEND = "dfastllm_send"


class ServerApp(Litestar):
    """Litestar, with the server's own `send` kept where a stream finds it."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope[_SERVERS_SEND] = send
        await super().__call__(scope, receive, send)


def past_the_layers(scope: Scope, send: Send) -> Send:
    """Return a `send` that gives the body, and only that, to the server without a detour.

    Each layer costs a coroutine for each token; what they do is done once the head has passed.
    """
    servers_send = cast("dict[str, Send]", scope).get(_SERVERS_SEND, send)

    def send_body_directly(message: Message) -> Awaitable[None]:
        return (servers_send if message["type"] == "http.response.body" else send)(message)

    return cast(Send, send_body_directly)
