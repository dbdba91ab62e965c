"""Closed-loop load over HTTP: so many clients, each with its next request as one ends."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.http_client import Client, Stream
from benchmarks.prompts import Prompt
from benchmarks.rounds import percentile

Request = tuple[str, Mapping[str, object]]
"""Path and body."""


@dataclass(frozen=True)
class LoadResult:
    seconds: float
    streams: Sequence[Stream]  # in the order of the requests

    def figures(self) -> dict[str, float]:
        first = [stream.first_s * 1e3 for stream in self.streams]
        pace = [stream.per_token_s * 1e3 for stream in self.streams]
        gaps = [gap * 1e3 for stream in self.streams for gap in stream.gaps_s]
        return {
            "tokens_s": sum(stream.num_tokens for stream in self.streams) / self.seconds,
            "first_ms_p50": percentile(first, 0.5),
            "first_ms_p95": percentile(first, 0.95),
            "pace_ms_p50": percentile(pace, 0.5),
            "pace_ms_p95": percentile(pace, 0.95),
            "gap_ms_p50": percentile(gaps, 0.5),
            "gap_ms_p95": percentile(gaps, 0.95),
            "num_streams": len(self.streams),
            "num_complete": sum(stream.is_complete for stream in self.streams),
        }


def run_streams(port: int, requests: Sequence[Request], at_once: int) -> LoadResult:
    """Stream all requests, `at_once` at a time, from connections opened beforehand."""
    return asyncio.run(_run(port, requests, at_once))


def completion(prompt: Prompt, **fields: object) -> Request:
    """The request that a prompt's form asks for: a chat, or text to be continued."""
    if prompt.messages:
        return "/v1/chat/completions", {"messages": prompt.messages, **fields}
    return "/v1/completions", {"prompt": prompt.text, **fields}


def model_name(port: int) -> str:
    """The name of the one model that is served."""

    async def ask() -> str:
        async with Client(port) as client:
            return str((await client.get("/v1/models"))["data"][0]["id"])

    return asyncio.run(ask())


async def _run(port: int, requests: Sequence[Request], at_once: int) -> LoadResult:
    waiting = deque(enumerate(requests))
    streams: dict[int, Stream] = {}

    async def work(client: Client) -> None:
        while waiting:
            index, request = waiting.popleft()
            streams[index] = await client.stream(*request)

    clients = [Client(port) for _ in range(min(at_once, len(requests)))]
    for client in clients:
        await client.__aenter__()
    started = time.perf_counter()
    try:
        await asyncio.gather(*map(work, clients))
    finally:
        seconds = time.perf_counter() - started
        for client in clients:
            await client.__aexit__(None, None, None)
    return LoadResult(seconds, [streams[index] for index in sorted(streams)])
