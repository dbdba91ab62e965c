"""Clients that send too slowly, too much, or do not read: they are let go, the others served."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

import api.http_protocol
from tests.api.fakes import FakeGateway, served
from worker.wire.messages import Accepted, Delta, Event, GenerateJob

CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": True}
WAIT_S = 10.0


async def _endless(job: GenerateJob) -> AsyncIterator[Event]:
    import asyncio

    yield Accepted(job.job_id, 5)
    index = 0
    while True:
        yield Delta(job.job_id, index, 0, [1], "x" * 4096)
        index += 1
        await asyncio.sleep(0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, FakeGateway]]:
    for name in ("HEAD_PATIENCE_S", "BODY_PATIENCE_S", "READ_PATIENCE_S"):
        monkeypatch.setattr(api.http_protocol, name, 0.3)
    gateway = FakeGateway()
    with served(gateway) as url:
        yield url, gateway


def _connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=WAIT_S)


def _is_closed(connection: socket.socket) -> bool:
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        return True
    return True


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
    ],
)
def test_who_stops_sending_is_let_go(impatient: tuple[str, FakeGateway], sent: bytes) -> None:
    url, _ = impatient
    with _connect(url) as connection:
        connection.sendall(sent)
        begun = time.monotonic()
        assert _is_closed(connection)
        assert time.monotonic() - begun < WAIT_S / 2
    assert httpx.get(f"{url}/health").status_code == 200


def test_a_head_has_an_end(impatient: tuple[str, FakeGateway]) -> None:
    url, _ = impatient
    with _connect(url) as connection, pytest.raises(ConnectionError):
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: ")
        for _ in range(200):
            connection.sendall(b"x" * 8192)
            time.sleep(0.001)
    assert httpx.get(f"{url}/health").status_code == 200


def test_who_does_not_read_is_let_go_and_his_job_is_cancelled(
    impatient: tuple[str, FakeGateway],
) -> None:
    url, gateway = impatient
    gateway.script = _endless
    body = httpx.Request("POST", url + CHAT, json=BODY).read()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with _connect(url) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert gateway.closed.wait(WAIT_S)
    assert gateway.cancelled == [gateway.jobs[0].job_id]


def test_a_slow_but_steady_client_is_served(impatient: tuple[str, FakeGateway]) -> None:
    url, _ = impatient
    with _connect(url) as connection:
        for piece in (b"GET /health HTTP/1.1\r\n", b"Host: x\r\n", b"\r\n"):
            connection.sendall(piece)
            time.sleep(0.05)
        assert b"200 OK" in connection.recv(65536)
