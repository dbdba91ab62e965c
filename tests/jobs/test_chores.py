"""The scripts behind: what ends, what is handed out, and who may say how it went."""

from __future__ import annotations

import time

import pytest
import redis
import redis.asyncio

from tests.wire.samples import QUEUE, QUEUES, failed, make_job
from worker.held_job import StepRecord
from worker.job_store import JobStore
from worker.wire import chores, job_views, queueing
from worker.wire.chores import DueWebhook
from worker.wire.job_record import JobRecord, Webhook
from worker.wire.job_views import HookNote
from worker.wire.messages import Failed
from worker.wire.queueing import Terms

pytestmark = pytest.mark.anyio

HOOKED = JobRecord(webhook=Webhook("https://example.com/"))


async def _put(client: redis.asyncio.Redis, job_id: str, terms: Terms) -> None:
    await queueing.enqueue(
        client,
        make_job(job_id),
        queue=QUEUE,
        timeout_s=60,
        result_ttl_s=100,
        failure_ttl_s=200,
        max_queue_size=1000,
        max_attempts=1,
        terms=terms,
    )


async def _take(client: redis.asyncio.Redis, lease_s: float = 60.0) -> list[DueWebhook]:
    return await chores.do_chores(client, limit=10, lease_s=lease_s, max_attempts=5)


async def _hook(client: redis.asyncio.Redis, job_id: str) -> job_views.HookView:
    view = await job_views.view(client, job_id, "tenant")
    assert view is not None and view.hook is not None
    return view.hook


def _end(store: JobStore, job_id: str) -> None:
    store.claim(QUEUES, 1)
    store.emit(StepRecord(endings=[failed(job_id)]))


async def test_a_worker_does_not_take_what_has_waited_too_long(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis
) -> None:
    await _put(async_redis, "a", Terms(max_queue_s=0.05))
    await _put(async_redis, "b", Terms(max_queue_s=50))
    time.sleep(0.1)
    (claim,) = JobStore(redis_client, "w1").claim(QUEUES, 2)
    assert claim.job.job_id == "b"
    state = await queueing.job_state(async_redis, "a")
    assert state is not None and isinstance(state.ending, Failed)
    assert (state.status, state.ending.code) == ("failed", "queue_timeout")


async def test_a_webhook_is_one_senders_for_a_lease(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis
) -> None:
    await _put(async_redis, "a", Terms(record=HOOKED))
    assert await _take(async_redis) == []
    _end(JobStore(redis_client, "w1"), "a")
    (first,) = await _take(async_redis, lease_s=0.1)
    assert first == DueWebhook("a", "tenant", "1", 1)
    assert await _take(async_redis) == []
    time.sleep(0.15)
    (second,) = await _take(async_redis)
    assert second.attempt == 2


async def test_a_sender_whose_lease_ran_out_has_no_say_any_more(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis
) -> None:
    await _put(async_redis, "a", Terms(record=HOOKED))
    store = JobStore(redis_client, "w1")
    _end(store, "a")
    (slow,) = await _take(async_redis, lease_s=0.01)
    time.sleep(0.05)
    (quick,) = await _take(async_redis)
    await chores.settle(async_redis, slow, "pending", HookNote(1.0, 500), again_in_s=0)
    assert (await _hook(async_redis, "a")).note is None and await _take(async_redis) == []
    await chores.settle(async_redis, quick, "delivered", HookNote(2.0, 200))
    await chores.settle(async_redis, slow, "pending", HookNote(1.0, 500), again_in_s=0)
    assert (await _hook(async_redis, "a")).state == "delivered"
    assert not redis_client.exists("dfl:webhooks")


async def test_a_forgotten_jobs_webhook_is_forgotten_and_leaves_no_key_behind(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis
) -> None:
    await _put(async_redis, "a", Terms(record=HOOKED))
    _end(JobStore(redis_client, "w1"), "a")
    (due,) = await _take(async_redis, lease_s=0.01)
    redis_client.delete("rq:job:a")
    await chores.settle(async_redis, due, "delivered", HookNote(1.0, 200))
    time.sleep(0.05)
    assert await _take(async_redis) == []
    assert not redis_client.exists("rq:job:a") and not redis_client.exists("dfl:webhooks")


async def test_every_key_goes_by_itself_or_is_emptied(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis
) -> None:
    terms = Terms("dfl:idempotency:tenant:k", "digest", 0.01, True, True, HOOKED)
    await _put(async_redis, "a", terms)
    time.sleep(0.05)
    (due,) = await _take(async_redis)
    await chores.settle(async_redis, due, "delivered", HookNote(1.0, 200))
    lasting = {key.decode() for key in redis_client.scan_iter() if redis_client.ttl(key) < 0}
    assert lasting == {"rq:queues", f"rq:failed:{QUEUE}"}  # RQ's own; the reaper trims them


async def test_chores_go_on_at_the_memory_limit(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis
) -> None:
    await _put(async_redis, "a", Terms(max_queue_s=0.01, record=HOOKED))
    time.sleep(0.05)
    redis_client.config_set("maxmemory", 1)
    try:
        (due,) = await _take(async_redis)
        await chores.settle(async_redis, due, "delivered", HookNote(1.0, 200))
        assert await job_views.follow(async_redis, "a", "tenant", "api") is not None
        assert (await _hook(async_redis, "a")).state == "delivered"
    finally:
        redis_client.config_set("maxmemory", 0)
