"""Everything real: a second worker serves long prefixes that only the first has computed."""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from random import Random
from typing import Any

import pytest
from redis import Redis

from benchmarks.model_free import queue_in_folder
from benchmarks.server import free_port, process, wait_until_ready

PREFIX = 1024
NUM_PAGES = PREFIX // 16
ENOUGH = 2
MOST_PROMPTS = 30
NAMES = ("one", "two")
WAIT_S = 60.0
DROPPED_S = 3.0
SETTINGS = {"PREFIX_CACHE_REDIS_MB": "256", "PREFIX_CACHE_SECRET": "of the test"}


class Cluster:
    """A queue, an API, and two workers with the same weights under different names."""

    def __init__(self, redis: Redis, port: int) -> None:
        self.redis = redis
        self._port = port

    def wait_for_pages(self, count: int) -> None:
        """Wait until so many are in Redis, but not for what was dropped."""
        deadline = time.monotonic() + DROPPED_S
        while self.redis.zcard("dfl:kv") < count and time.monotonic() < deadline:
            time.sleep(0.01)

    def ask(self, model: str, number: int, **fields: Any) -> dict[str, Any]:
        prompt = Random(number).choices(range(300, 2000), k=PREFIX)
        body = {
            "model": model,
            "prompt": [*prompt, 301, 302, 303],
            "seed": number,
            "max_tokens": 24,
            "temperature": number % 2,
            "ignore_eos": True,
            **fields,
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=WAIT_S) as response:
            answer: dict[str, Any] = json.load(response)
        return answer


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    port = free_port()
    with ExitStack() as stack:
        folder, queue = stack.enter_context(queue_in_folder())
        redis = stack.enter_context(Redis.from_url(queue.url))
        at = {"PORT": str(port), "REDIS_URL": queue.url}
        for name in NAMES:
            command = [sys.executable, "-m", "worker", "--name", name]
            own = {"MODEL_NAME": name, "REDIS_URL": queue.url, **SETTINGS}
            stack.enter_context(process(command, folder / f"{name}.log", **own))
        command = [sys.executable, "-m", "api"]
        api = stack.enter_context(process(command, folder / "api.log", **at))
        wait_for(lambda: redis.zcard("dfl:models") == len(NAMES))
        wait_until_ready(port, api)
        yield Cluster(redis, port)


def wait_for(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def cached(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_a_second_worker_serves_prefixes_that_only_the_first_has_computed(
    cluster: Cluster,
) -> None:
    one, two = NAMES
    found: list[int] = []
    # While the machine is busy one or the other is not written, or computed because that is sooner.
    while found.count(PREFIX) < ENOUGH:
        number = len(found)
        assert number < MOST_PROMPTS, f"hardly any prefix was found: {found}"
        first = cluster.ask(one, number)
        cluster.wait_for_pages(NUM_PAGES * (number + 1))
        second = cluster.ask(two, number)
        assert texts(second) == texts(first)
        assert cached(first) == 0
        found.append(cached(second))
    strange = cluster.ask(two, 0, cache_salt="of somebody else")
    assert (texts(strange), cached(strange)) == (texts(cluster.ask(one, 0)), 0)


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]
