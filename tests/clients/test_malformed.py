"""Bodies, heads, UTF-8, sizes and paces of every wrong kind: the server answers afterwards.

Memory: two like amounts of traffic, of which the first warms what is kept once. The second may add
what awaits the cyclic collector, which the API lets run after 50,000 new objects, and fragments of
the heap: together up to 6 MB were seen here. A hundred bodies of 1 MB in it tell if any stay, as
they did for the collector while a request was in a circle with its connection.
"""

from __future__ import annotations

import json
import random
import socket
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx

from tests.clients.conftest import KEY, ROUNDS, WholeServer
from tests.worker_bench import MODEL

NUM_REQUESTS = 500 * ROUNDS  # in each half
NUM_LARGE = 100 * ROUNDS
LARGE = b'{"model": ' + b"[" * 1_000_000
BODY_BYTES = 200_000  # of the largest
SLACK_BYTES = 16 * 1024 * 1024
LEAK_BYTES = 1024  # a request
PATHS = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/jobs", "/v1/files",
    "/v1/batches", "/tokenize", "/detokenize", "/v1/models/%ff%00", "/v1/files/../../etc/passwd",
    "/v1/jobs/%F0%9F%92%A5/events", "/\xff", "//", "*", "http://[", "/v1/responses/a?stream=\xff",
)  # fmt: skip
JSON = {"Content-Type": "application/json"}
PATIENCE_S = 0.1
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
GOOD = {"model": MODEL, "prompt": "x", "max_tokens": 2}
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "BREW", "\xff")
BAD_UTF8 = (b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\x80")


def test_nothing_malformed_stops_the_server_or_stays_in_its_memory(
    whole_server: WholeServer,
) -> None:
    dice = random.Random(7)
    statuses = _bombard(whole_server, dice)
    assert {200, 400, 404, 405, 415} <= statuses.keys(), statuses  # it got somewhere
    before = _resident_bytes(whole_server.pid)
    _bombard(whole_server, dice)
    grown = _resident_bytes(whole_server.pid) - before
    assert grown < SLACK_BYTES + LEAK_BYTES * NUM_REQUESTS, f"{grown} bytes more"


def _bombard(server: WholeServer, dice: random.Random) -> Counter[int]:
    statuses: Counter[int] = Counter()
    with ExitStack() as dangling:
        for number in range(NUM_REQUESTS):
            connection = socket.create_connection(server.address, timeout=20)
            if number % 10 == 0:  # a slow client: it neither reads nor goes on
                dangling.enter_context(connection)
                connection.sendall(_request(dice)[: dice.randrange(2000)])
            else:
                with connection:
                    statuses[_status(_answer(connection, _request(dice)))] += 1
        with server.client() as client:
            for _ in range(NUM_LARGE):
                reply = client.post("/v1/completions", content=LARGE, headers=JSON)
                assert reply.status_code == 400
            reply = client.post("/v1/completions", json=GOOD)
        assert reply.status_code == 200, reply.text
    return statuses


def _answer(connection: socket.socket, request: bytes) -> bytes:
    """Return what comes; a request that is cut off gets nothing, and is left."""
    received = b""
    connection.settimeout(PATIENCE_S)
    with suppress(ConnectionError, TimeoutError):
        connection.sendall(request)
        while chunk := connection.recv(65536):
            received += chunk
    return received


def _status(received: bytes) -> int:
    """Check that it is an HTTP answer below 500, or nothing."""
    if not received:
        return 0
    version, status, *_ = received.removeprefix(CONTINUE).split(b" ", 2)
    assert version == b"HTTP/1.1", received[:200]
    assert 200 <= int(status) < 500, received[:500]
    return int(status)


def _request(dice: random.Random) -> bytes:
    body = _body(dice)
    if dice.random() < 0.1:
        return body  # no HTTP at all
    method = "POST" if dice.random() < 0.7 else dice.choice(METHODS)
    head = f"{method} {dice.choice(PATHS)} HTTP/{dice.choice(['1.1'] * 8 + ['1.0', '9.9'])}\r\n"
    lines = {
        "Host": "x",
        "Connection": "close",
        "Authorization": f"Bearer {KEY}" if dice.random() < 0.9 else "Bearer \xff\xfe",
        "Content-Type": dice.choice(
            ["application/json"] * 6
            + ["text/plain", "multipart/form-data", "multipart/form-data; boundary=b", "\xff;;="]
        ),
        "Content-Length": str(len(body)),
    }
    for _ in range(dice.randrange(3)):
        _spoil(lines, dice)
    text = head + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
    return text.encode("latin-1") + body


def _spoil(lines: dict[str, str], dice: random.Random) -> None:
    name, value = dice.choice(
        [
            ("Content-Length", "-1"), ("Content-Length", "9" * 30), ("Content-Length", "5"),
            ("Transfer-Encoding", "chunked"), ("Expect", "100-continue"),
            ("Idempotency-Key", "\xff" * 300), ("Idempotency-Key", ""),
            ("Last-Event-ID", "-1"), ("Last-Event-ID", "9" * 40), ("X-Request-Id", "\t\xff"),
            ("Accept-Encoding", "\xff"), ("Cookie", "=" * 5000), ("X-Long", "x" * 60_000),
            ("X Bad", "x"), ("", "x"), ("Origin", "null"), ("Upgrade", "websocket"),
            ("Connection", "keep-alive"), ("Host", ""), ("Authorization", "Basic \x01"),
        ]
    )  # fmt: skip
    lines[name] = value


def _body(dice: random.Random) -> bytes:
    good = json.dumps(GOOD).encode()
    place = dice.randrange(len(good))
    return dice.choice(
        [
            good,
            good.replace(b'"x"', rb'"\u0000\ud83d\ude00\u202e"'),
            good[:place],
            good[:place] + dice.choice(BAD_UTF8) + good[place:],
            good.replace(b'"x"', b'"' + dice.choice(BAD_UTF8) + b'"'),
            good.replace(b'"x"', rb'"\ud800"'),
            good.replace(b'"x"', b'"' + b"x" * dice.randrange(BODY_BYTES) + b'"'),
            good.replace(b"2", b"9" * dice.randrange(1, 5000)),
            good.replace(b"2", b"1e999"),
            good.replace(b'"x"', b"[" * dice.randrange(BODY_BYTES)),
            b'{"a":' * dice.randrange(20_000),
            b'{"model":"%s","messages":[{"role":"user","content":"\x00"}]}' % MODEL.encode(),
            dice.randbytes(dice.randrange(2000)),
            b"--b\r\nContent-Disposition: form-data; name=file; filename=\xff\r\n\r\n\xff\r\n--b",
            b"ffffffffffffffff\r\n",
            b"5\r\nabcde\r\n0\r\n\r\n",
            b"",
            b"null",
        ]
    )


def _resident_bytes(pid: int) -> int:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * 4096


def test_a_hundred_slow_clients_do_not_keep_a_fast_one_waiting(whole_server: WholeServer) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"
    with ExitStack() as stack:
        for _ in range(100):
            connection = stack.enter_context(socket.create_connection(whole_server.address))
            connection.sendall(head)
        with whole_server.client() as client:
            assert client.post("/v1/completions", json=GOOD).status_code == 200
    assert httpx.get(f"{whole_server.url}/health").status_code == 200
