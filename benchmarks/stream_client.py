"""Many streams at once, read by as little code as can tell when each token came.

A process of its own: what it uses is counted apart from the server. It prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import cast

import uvloop

PATH = "/v1/completions"
TIMEOUT_S = 120.0
# What `benchmarks.paced_worker` says: the moments of the steps, in nanoseconds.
_TOKENS = re.compile(rb'"text":"((?:\d+;)+)"')
_OK = b"HTTP/1.1 200"
_DONE = b"data: [DONE]"


@dataclass
class Report:
    """What all streams have seen; times in milliseconds."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    num_complete: int = 0
    opened_ms: list[float] = field(default_factory=list)
    """From the request to the status line: the worker has accepted."""
    first_ms: list[float] = field(default_factory=list)
    """From the request to the first token."""
    way_ms: list[float] = field(default_factory=list)
    """Of each token: from the end of its step to this process."""


class StreamReader(asyncio.Protocol):
    """One connection, one streamed completion."""

    def __init__(self, request: bytes, report: Report) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._report = report
        self._sent_at = 0.0
        self._rest = b""
        self._is_open = False
        self._is_done = False
        self._has_token = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop inherits from none

    def send(self) -> None:
        self._sent_at = time.monotonic()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        data = self._rest + data
        if not self._is_open and len(data) >= len(_OK):
            self._open(data, now)
        end = 0
        for match in _TOKENS.finditer(data):
            end = match.end()
            moments = match[1].split(b";")[:-1]
            self._report.way_ms += [now * 1e3 - int(moment) / 1e6 for moment in moments]
        if end and not self._has_token:
            self._has_token = True
            self._report.first_ms.append((now - self._sent_at) * 1e3)
        self._rest = data[end:]
        if not self._is_done and _DONE in self._rest:
            self._is_done = True
            self._report.num_complete += 1
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def _open(self, data: bytes, now: float) -> None:
        if not data.startswith(_OK):
            raise SystemExit(f"the server refused: {data[:300]!r}")
        self._is_open = True
        self._report.opened_ms.append((now - self._sent_at) * 1e3)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.stream_client", description=__doc__)
    for name in ("--port", "--streams", "--tokens"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--opening-s", type=float, default=0.0, help="streams begin within it")
    args = parser.parse_args(argv)
    report = uvloop.run(read_streams(args.port, args.streams, args.tokens, args.opening_s))
    report.cpu_s = time.process_time()
    json.dump(asdict(report), sys.stdout)
    return 0


async def read_streams(port: int, num_streams: int, num_tokens: int, opening_s: float) -> Report:
    """Open all connections, send the requests over `opening_s` seconds, read all to the end."""
    report = Report()
    loop = asyncio.get_running_loop()
    readers = []
    for seed in range(num_streams):
        request = _request(num_tokens, seed)
        _, reader = await loop.create_connection(
            lambda request=request: StreamReader(request, report), "127.0.0.1", port
        )
        readers.append(reader)
    started = time.monotonic()
    for index, reader in enumerate(readers):
        await asyncio.sleep(started + index * opening_s / num_streams - time.monotonic())
        reader.send()
    await asyncio.wait_for(asyncio.gather(*(reader.ended for reader in readers)), TIMEOUT_S)
    report.seconds = time.monotonic() - started
    return report


def _request(num_tokens: int, seed: int) -> bytes:
    prompt = "a prompt of some words, as short ones are"
    fields = {"model": "fake", "prompt": prompt, "max_tokens": num_tokens, "stream": True}
    body = json.dumps({**fields, "seed": seed}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: benchmark\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


if __name__ == "__main__":
    sys.exit(main())
