"""The client: texts in the order of the requests, also from servers that hang up on it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.load import run_streams

ANSWERS_A_CONNECTION = 2


class HangsUp(BaseHTTPRequestHandler):
    """Streams each prompt back, the first one late, and closes unannounced after two answers."""

    protocol_version = "HTTP/1.1"
    num_answers = 0

    def do_POST(self) -> None:
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
        time.sleep(0.05 if prompt == "0" else 0)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in _events(prompt):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
        self.wfile.write(b"0\r\n\r\n")
        self.num_answers += 1
        self.close_connection = self.num_answers == ANSWERS_A_CONNECTION

    def log_message(self, format: str, *args: object) -> None:
        pass


def _events(prompt: str) -> Iterator[bytes]:
    for text, reason in ((prompt, None), ("!", "length")):
        chunk = {"choices": [{"text": text, "finish_reason": reason}]}
        yield f"data: {json.dumps(chunk)}\n\n".encode()
    usage = {"choices": [], "usage": {"completion_tokens": 2}}
    yield f"data: {json.dumps(usage)}\n\ndata: [DONE]\n\n".encode()


@contextmanager
def _hanging_up() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), HangsUp) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("at_once", [1, 3])
def test_texts_come_in_the_order_of_the_requests_over_connections_that_are_closed(
    at_once: int,
) -> None:
    requests = [("/v1/completions", {"prompt": str(index)}) for index in range(7)]
    with _hanging_up() as port:
        result = run_streams(port, requests, at_once)
    assert [stream.text for stream in result.streams] == [f"{index}!" for index in range(7)]
    assert all(stream.is_complete and stream.num_tokens == 2 for stream in result.streams)
