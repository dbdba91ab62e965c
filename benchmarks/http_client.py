"""A lean HTTP client for one server: it shares the machine with what it measures."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self


class RequestFailedError(Exception):
    """The server answered with something else than 200."""


@dataclass
class Stream:
    """What came of one streamed request; times in seconds since it was sent."""

    chunk_times: list[float] = field(default_factory=list)  # of chunks with text or an ending
    num_tokens: int = 0
    num_cached_tokens: int = 0
    text: str = ""
    finish_reason: str | None = None
    is_done: bool = False

    @property
    def is_complete(self) -> bool:
        return self.is_done and self.finish_reason is not None

    @property
    def first_s(self) -> float:
        return self.chunk_times[0] if self.chunk_times else float("nan")

    @property
    def per_token_s(self) -> float:
        """The mean pace after the first chunk."""
        if self.num_tokens < 2 or not self.chunk_times:
            return float("nan")
        return (self.chunk_times[-1] - self.chunk_times[0]) / (self.num_tokens - 1)

    @property
    def gaps_s(self) -> list[float]:
        pairs = zip(self.chunk_times, self.chunk_times[1:], strict=False)
        return [later - earlier for earlier, later in pairs]


class Client:
    """One keep-alive connection, one request at a time."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._host = host
        self._port = port

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

    async def get(self, path: str) -> Any:
        self._send(b"", "GET", path)
        return await self._answer()

    async def post(self, path: str, body: Mapping[str, object]) -> Any:
        """Send JSON and return the JSON that comes back."""
        self._send(json.dumps(body).encode(), "POST", path)
        return await self._answer()

    async def stream(self, path: str, body: Mapping[str, object]) -> Stream:
        """Send a streamed completion (chat or not) and follow it to its end."""
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        started = time.perf_counter()
        self._send(json.dumps(asked).encode(), "POST", path)
        result = Stream()
        rest = b""
        async for part in self._body():
            now = time.perf_counter() - started
            *events, rest = (rest + part).split(b"\n\n")
            for event in events:
                _take_event(result, event, now)
        return result

    def _send(self, body: bytes, method: str, path: str) -> None:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body
        self._writer.write(self._request)

    async def _connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        self._is_used = False

    async def _head(self) -> bytes:
        """The status and fields; some servers close after an answer, and are then asked anew."""
        try:
            return await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionResetError):
            if not self._is_used:
                raise
        self._writer.close()
        await self._connect()
        self._writer.write(self._request)
        return await self._reader.readuntil(b"\r\n\r\n")

    async def _answer(self) -> Any:
        return json.loads(b"".join([part async for part in self._body()]))

    async def _body(self) -> AsyncIterator[bytes]:
        head = (await self._head()).decode("latin-1").lower()
        self._is_used = True
        status, _, fields = head.partition("\r\n")
        parts = self._chunks() if "transfer-encoding: chunked" in fields else self._whole(fields)
        if status.split()[1] != "200":
            text = b"".join([part async for part in parts])[:300].decode(errors="replace")
            raise RequestFailedError(f"{status}: {text}")
        async for part in parts:
            yield part

    async def _whole(self, fields: str) -> AsyncIterator[bytes]:
        length = int(fields.split("content-length:")[1].split("\r\n")[0])
        yield await self._reader.readexactly(length)

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int((await self._reader.readline()).split(b";")[0], 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readline()


def _take_event(result: Stream, event: bytes, now: float) -> None:
    data = b"\n".join(line[6:] for line in event.splitlines() if line.startswith(b"data: "))
    if not data:
        return  # a comment, to keep the connection open
    if data == b"[DONE]":
        result.is_done = True
        return
    chunk = json.loads(data)
    if "error" in chunk:
        raise RequestFailedError(str(chunk["error"]))
    if usage := chunk.get("usage"):
        result.num_tokens = usage["completion_tokens"]
        details = usage.get("prompt_tokens_details") or {}
        result.num_cached_tokens = details.get("cached_tokens") or 0
    for choice in chunk["choices"]:
        # The role alone, which opens a chat, is no token.
        text = choice.get("text") or (choice.get("delta") or {}).get("content")
        result.finish_reason = choice.get("finish_reason") or result.finish_reason
        result.text += text or ""
        if text or choice.get("finish_reason"):
            result.chunk_times.append(now)
