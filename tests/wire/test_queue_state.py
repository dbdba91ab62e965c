"""The queue as an operator sees it, against a real server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import redis
import redis.asyncio

from tests.valkey import Valkey
from tests.wire.samples import INFO, QUEUE, QUEUES, failed, make_job, put
from worker.held_job import StepRecord
from worker.job_store import JobStore
from worker.wire import keys
from worker.wire.queue_state import QueueState, queue_states, store_memory

pytestmark = pytest.mark.anyio


async def _state(client: redis.asyncio.Redis) -> QueueState:
    return (await queue_states(client, QUEUES))[QUEUE]


async def _make_older(client: redis.asyncio.Redis, job_id: str, seconds: float) -> None:
    # Deadlines are kept in whole milliseconds, so an age may come out half a one too short.
    await client.hincrbyfloat(keys.job(job_id), "dfl_deadline", -seconds)


async def test_an_empty_queue_has_no_age(async_redis: redis.asyncio.Redis) -> None:
    assert await queue_states(async_redis, QUEUES) == dict.fromkeys(QUEUES, QueueState(0, 0.0, 0))


async def test_a_queue_is_as_old_as_the_job_at_its_head(async_redis: redis.asyncio.Redis) -> None:
    await put(async_redis, "first")
    await put(async_redis, "second")
    await _make_older(async_redis, "first", 40)
    state = await _state(async_redis)
    assert state.length == 2
    assert 39.99 <= state.oldest_age_s < 60


async def test_what_is_no_longer_queued_has_no_age(async_redis: redis.asyncio.Redis) -> None:
    await put(async_redis, "gone")
    await put(async_redis, "here")
    await _make_older(async_redis, "here", 40)
    await async_redis.delete(keys.job("gone"))
    assert 39.99 <= (await _state(async_redis)).oldest_age_s < 60


async def test_a_job_that_an_operator_requeued_is_as_old_as_rq_says(
    async_redis: redis.asyncio.Redis,
) -> None:
    await put(async_redis, "again")
    then = datetime.now(UTC) - timedelta(seconds=90)
    await async_redis.hdel(keys.job("again"), "dfl_deadline")
    await async_redis.hset(keys.job("again"), "enqueued_at", then.isoformat())
    assert 90 <= (await _state(async_redis)).oldest_age_s < 110


async def test_failed_jobs_are_counted_until_they_are_forgotten(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis
) -> None:
    await put(async_redis, "bad")
    store = JobStore(redis_client, "w1")
    store.claim(QUEUES, 1)
    store.emit(StepRecord(endings=[failed("bad")]))
    await async_redis.zadd(f"rq:failed:{QUEUE}", {"forgotten": 1})
    assert await _state(async_redis) == QueueState(0, 0.0, 1)


async def test_jobs_are_counted_wherever_they_wait(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis
) -> None:
    store = JobStore(redis_client, "w1", modes=["ar"])
    JobStore(redis_client, "w2", modes=["deer"]).beat([], INFO)
    await put(async_redis, make_job("special", mode="deer"))
    for name in ("runs", "deferred"):
        await put(async_redis, name, max_running=1)
    assert len(store.claim(QUEUES, 9)) == 1
    await put(async_redis, "waits")
    state = await _state(async_redis)
    assert (state.length, state.num_deferred) == (2, 1)


async def test_memory_is_what_the_server_says(async_redis: redis.asyncio.Redis) -> None:
    memory = await store_memory(async_redis)
    assert memory is not None and memory.used > 100_000 and memory.maximum == 0


async def test_memory_is_unknown_to_a_user_that_may_not_ask(
    valkey: Valkey, async_redis: redis.asyncio.Redis
) -> None:
    await async_redis.acl_setuser("small", enabled=True, nopass=True, commands=["+ping"])
    try:
        async with redis.asyncio.Redis(
            unix_socket_path=f"{valkey.folder}/s", username="small", password="x"
        ) as small:
            assert await store_memory(small) is None
    finally:
        await async_redis.acl_deluser("small")
