"""Jobs that wait for others of their key: what else can happen to them."""

from __future__ import annotations

import pytest
import redis
import redis.asyncio

from tests.wire.samples import QUEUE, QUEUES, finished, make_job, put
from tests.worker.leases import status_of
from worker.held_job import StepRecord
from worker.job_store import JobStore
from worker.wire import job_views, queueing

pytestmark = pytest.mark.anyio

Client = redis.asyncio.Redis


async def put_one_at_a_time(client: Client, *names: str, timeout_s: int = 60) -> None:
    for name in names:
        await put(client, make_job(name, tenant="a"), max_running=1, timeout_s=timeout_s)


def claim(store: JobStore) -> list[str]:
    return [one.job.job_id for one in store.claim(QUEUES, 100)]


async def test_a_job_that_waits_for_its_key_cannot_be_forgotten(
    async_redis: Client, store: JobStore
) -> None:
    await put_one_at_a_time(async_redis, "a", "b")
    claim(store)
    assert await job_views.forget(async_redis, "b", "a") is False
    store.emit(StepRecord(endings=[finished("a", 0)]))
    assert claim(store) == ["b"]


async def test_a_job_of_little_time_does_not_shorten_the_wait_of_the_others(
    async_redis: Client, redis_client: redis.Redis, store: JobStore
) -> None:
    await put_one_at_a_time(async_redis, "a", "long", timeout_s=5000)
    claim(store)
    await put_one_at_a_time(async_redis, "short", timeout_s=10)
    claim(store)
    assert await status_of(async_redis, "short") == "deferred"
    for key in (f"dfl:lane:a:{QUEUE}", "dfl:lanes:a", "dfl:lanes"):
        assert redis_client.ttl(key) > 5000


async def test_a_key_whose_jobs_wait_for_each_other_does_not_exceed_a_full_queue(
    async_redis: Client, store: JobStore
) -> None:
    async def put_into_small(name: str, tenant: str) -> None:
        await put(async_redis, make_job(name, tenant=tenant), max_running=1, max_queue_size=3)

    await put_one_at_a_time(async_redis, "a0", "a1", "a2", "a3")
    assert claim(store) == ["a0"]
    await put_into_small("b0", "b")
    assert claim(store) == ["b0"]
    with pytest.raises(queueing.QueueFullError):
        await put_into_small("a4", "a")
    await put_into_small("c0", "c")


async def test_a_free_place_goes_on_to_a_job_that_still_has_time(
    async_redis: Client, redis_client: redis.Redis, store: JobStore
) -> None:
    await put_one_at_a_time(async_redis, *"abcd")
    assert claim(store) == ["a"]
    for name in "bc":
        redis_client.hset(f"rq:job:{name}", "dfl_deadline", 1)
    store.emit(StepRecord(endings=[finished("a", 0)]))
    assert claim(store) == ["d"]


async def test_a_free_place_goes_on_when_who_came_back_for_it_is_cancelled(
    async_redis: Client, store: JobStore
) -> None:
    await put_one_at_a_time(async_redis, *"abc")
    assert claim(store) == ["a"]
    store.emit(StepRecord(endings=[finished("a", 0)]))
    assert await queueing.cancel(async_redis, "b")
    assert claim(store) == ["c"]
