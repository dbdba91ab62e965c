"""A job that kills its workers does not take its neighbours with it."""

from __future__ import annotations

import pytest
import redis
import redis.asyncio

from tests.valkey import Valkey
from tests.wire.samples import QUEUE, QUEUES, finished, put
from worker.held_job import StepRecord
from worker.job_store import JobStore

pytestmark = pytest.mark.anyio

NAMES = ["a", "poison", "b", "c"]


async def _put_and_kill_two_workers(client: redis.asyncio.Redis, store: JobStore) -> None:
    for name in NAMES:
        await put(client, name, max_attempts=3)
    for _ in range(2):
        assert len(store.claim(QUEUES, 8)) == len(NAMES)
        store.reap_worker("w1")


def _claim(store: JobStore, limit: int = 8) -> list[str]:
    return [claim.job.job_id for claim in store.claim(QUEUES, limit)]


async def test_jobs_that_two_workers_have_died_with_are_tried_one_at_a_time(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore
) -> None:
    await _put_and_kill_two_workers(async_redis, store)
    order = []
    while names := _claim(store):
        assert len(names) == 1 and _claim(store) == []
        order += names
        if names == ["poison"]:
            assert store.reap_worker("w1") == ([], ["poison"])
        else:
            store.emit(StepRecord(endings=[finished(names[0])]))
    assert sorted(order) == sorted(NAMES)
    assert redis_client.zcard(f"rq:finished:{QUEUE}") == 3
    assert redis_client.zrange(f"rq:failed:{QUEUE}", 0, -1) == [b"poison"]


async def test_what_waits_apart_keeps_its_place_and_holds_nobody_up(
    async_redis: redis.asyncio.Redis, valkey: Valkey, store: JobStore, other: JobStore
) -> None:
    await _put_and_kill_two_workers(async_redis, store)
    await put(async_redis, "fresh")
    waiting = store._redis.lrange(f"rq:queue:{QUEUE}", 0, -1)
    first, fresh = _claim(store)
    assert (first.encode(), fresh) == (waiting[0], "fresh")
    assert store._redis.lrange(f"rq:queue:{QUEUE}", 0, -1) == waiting[1:4]
    assert _claim(other, 1) == [waiting[1].decode()], "another worker may have one, too"


async def test_a_single_death_leaves_jobs_together(
    async_redis: redis.asyncio.Redis, store: JobStore
) -> None:
    for name in NAMES:
        await put(async_redis, name, max_attempts=2)
    _claim(store)
    store.reap_worker("w1")
    assert len(_claim(store)) == len(NAMES)
