"""Clients that leave at any moment leave nothing behind: no job, no generation, no taken place."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import httpx
import pytest
import redis

from api.app import create_app
from api.gateway import RedisGateway
from api.settings import ApiSettings
from tests.api.fakes import serving
from tests.api.scripted_worker import wait_until
from tests.clients.conftest import ROUNDS
from tests.valkey import Valkey
from tests.worker_bench import MODEL, running_worker
from worker.wire import keys

NUM_REQUESTS = 200 * ROUNDS
AT_ONCE = 60  # more than the worker has places: some leave while they wait
LONGEST_S = 0.4
ENDLESS = 4000  # tokens: 40 s, more than the test waits for the end of all
END_LIMIT_S = 15.0
PATHS = {
    "/v1/completions": {"model": MODEL, "prompt": "x"},
    "/v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "x"}]},
    "/v1/responses": {"model": MODEL, "input": "x"},
}

pytestmark = pytest.mark.anyio


class SlowServer(NamedTuple):
    url: str
    valkey: Valkey
    gateway: RedisGateway


@pytest.fixture
def slow_server(valkey: Valkey) -> Iterator[SlowServer]:
    """An API in this process, whose generations can be counted, and a slow worker."""
    app = create_app(ApiSettings(redis_url=valkey.url))
    with (
        running_worker(valkey, "w1", step_s=0.01, max_batch_size=16),
        serving(app) as url,
    ):
        wait_until(lambda: httpx.get(f"{url}/ready").status_code == 200, "it is ready", 30)
        gateway = app.state.services.gateway
        assert isinstance(gateway, RedisGateway)
        yield SlowServer(url, valkey, gateway)


async def test_who_leaves_leaves_no_job_no_generation_and_no_taken_place(
    slow_server: SlowServer,
) -> None:
    dice, seen = random.Random(11), Counter[str]()
    entrance = asyncio.Semaphore(AT_ONCE)
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=slow_server.url, timeout=60, limits=limits) as client:

        async def visit() -> None:
            path = dice.choice(list(PATHS))
            leaves = dice.random() < 0.8
            body = {**PATHS[path], **_wishes(dice, path, ENDLESS if leaves else 8)}
            stay_s = dice.choice([LONGEST_S, 0.01]) * dice.random() if leaves else 60
            num_chunks = dice.choice([0, dice.randrange(1, 6)])  # 0: all
            async with entrance:
                seen[await _visit(client, path, body, stay_s, num_chunks)] += 1

        await asyncio.gather(*(visit() for _ in range(NUM_REQUESTS)))
    for what in ("left before its status", "left a stream", "stayed"):
        assert seen[what] > NUM_REQUESTS / 50, seen
    _wait_until_nothing_is_left(slow_server)


def _wishes(dice: random.Random, path: str, max_tokens: int) -> dict[str, object]:
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    wishes: dict[str, object] = {limit: max_tokens, "seed": dice.randrange(1000)}
    if dice.random() < 0.5:
        wishes["stream"] = True
    if limit == "max_tokens" and dice.random() < 0.3:
        wishes["n"] = 3
    return wishes


async def _visit(
    client: httpx.AsyncClient, path: str, body: dict[str, object], stay_s: float, num_chunks: int
) -> str:
    """Ask, and leave after a while or so many chunks at the latest; say how it went."""
    at = "left before its status"
    try:
        async with asyncio.timeout(stay_s):
            async with client.stream("POST", path, json=body) as reply:
                assert reply.status_code == 200, await reply.aread()
                at = "left a stream" if body.get("stream") else "left a body"
                async for _ in reply.aiter_bytes():
                    num_chunks -= 1
                    if num_chunks == 0:
                        return at
        return "stayed"
    except TimeoutError:
        return at


def _wait_until_nothing_is_left(server: SlowServer) -> None:
    with server.valkey.connect() as store:
        wait_until(lambda: not _busy(store), "no job is left", END_LIMIT_S)
    wait_until(lambda: _load(server) == (0, 0, 0), "all places are free", END_LIMIT_S)
    assert not server.gateway._channel._generations


def _busy(store: redis.Redis) -> list[object]:
    """Return the jobs that wait or run, by the queue's own lists and by their own words."""
    waiting = [
        one for name in keys.queue_names(MODEL) for one in store.lrange(keys.queue(name), 0, -1)
    ]
    jobs = store.scan_iter(match=keys.job("*"), count=1000)
    return waiting + [job for job in jobs if store.hget(job, "status") in (b"queued", b"started")]


def _load(server: SlowServer) -> tuple[float, float, float]:
    """Return jobs in worker and queues, generations in the API, and places that are taken."""
    with httpx.Client(base_url=server.url) as client:
        load = client.get("/load").json()["server_load"]
        lines = client.get("/metrics").text.splitlines()
    return load, _sum(lines, "dfastllm_requests_in_flight"), _sum(lines, "dfastllm_num_requests")


def _sum(lines: list[str], prefix: str) -> float:
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(prefix))
