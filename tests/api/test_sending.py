"""Chunks go past the layers that look at heads; heads and whole answers go through them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any

from litestar import get
from litestar.types import Message, Scope

from api.answering import EventStream
from api.completions import CompletionController
from api.model_controller import ModelController
from api.sending import ServerApp


async def _chunks() -> AsyncIterator[bytes]:
    for number in range(3):
        yield b"%d" % number


@get("/stream")
async def _stream() -> EventStream:
    return EventStream(_chunks(), on_end=lambda: None)


@get("/whole", media_type="text/plain")
async def _whole() -> str:
    return "whole"


def _ask(path: str) -> tuple[list[Message], list[Message]]:
    """Return what the hook before sending saw, and what the server was given."""
    seen: list[Message] = []
    given: list[Message] = []

    async def look(message: Message, _: Scope) -> None:
        seen.append(message)

    app = ServerApp([_stream, _whole], before_send=[look], logging_config=None, openapi_config=None)
    scope: dict[str, Any] = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "headers": [],
        "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1",
    }  # fmt: skip

    async def ask() -> None:
        is_over = asyncio.Event()

        async def receive() -> dict[str, str]:
            await is_over.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            given.append(message)
            if message["type"] == "http.response.body" and not message["more_body"]:
                is_over.set()

        await app(scope, receive, send)

    asyncio.run(ask())
    return seen, given


def test_a_stream_s_chunks_reach_the_server_and_no_layer() -> None:
    seen, given = _ask("/stream")
    assert [message["type"] for message in seen] == ["http.response.start"]
    assert [message["body"] for message in given[1:]] == [b"0", b"1", b"2", b""]  # type: ignore[typeddict-item]
    assert given[0] is seen[0]


def test_a_whole_answer_passes_every_layer() -> None:
    seen, given = _ask("/whole")
    assert seen == given
    assert [message["type"] for message in seen] == ["http.response.start", "http.response.body"]


def test_no_guard_is_run_in_a_thread() -> None:
    guards = [*CompletionController.guards, *ModelController.guards]
    assert guards
    assert all(inspect.iscoroutinefunction(guard) for guard in guards)
