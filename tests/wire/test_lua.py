"""Scripts are called by their sha1, and sent again where Redis has forgotten them."""

from __future__ import annotations

from importlib.resources import files

import pytest
import redis
import redis.asyncio

from worker.wire import lua

NAMES = [
    path.name.removesuffix(".lua")
    for path in (files("worker.wire") / "scripts").iterdir()
    if path.name.removesuffix(".lua") not in lua.PARTS
]


@pytest.mark.parametrize("name", NAMES)
def test_the_sha1_is_the_one_redis_computes(name: str, redis_client: redis.Redis) -> None:
    script = lua.load(name)
    assert redis_client.script_load(script.text) == script.sha


BRING_WORK = {"enqueue", "batch_add", "rate_limit"}
ONLY_READ = {"jobs", "listed", "models", "queues", "state", "view"}


@pytest.mark.parametrize("name", sorted(set(NAMES) - BRING_WORK - ONLY_READ))
def test_what_ends_or_moves_jobs_may_run_at_the_memory_limit(name: str) -> None:
    assert lua.load(name).text.startswith("#!lua flags=allow-oom\n")


@pytest.mark.parametrize("name", sorted(BRING_WORK))
def test_what_brings_work_may_not_run_at_the_memory_limit(name: str) -> None:
    assert lua.load(name).text.startswith("#!lua\n")


def test_a_forgotten_script_is_sent_again(redis_client: redis.Redis) -> None:
    assert lua.call(redis_client, "state", {"id": "none"}) == []
    redis_client.script_flush()
    assert lua.call(redis_client, "state", {"id": "none"}) == []
    assert redis_client.script_exists(lua.load("state").sha) == [True]


@pytest.mark.anyio
async def test_a_forgotten_script_is_sent_again_from_an_event_loop(
    async_redis: redis.asyncio.Redis,
) -> None:
    assert await lua.acall(async_redis, "state", {"id": "none"}) == []
    await async_redis.script_flush()
    assert await lua.acall(async_redis, "state", {"id": "none"}) == []
