"""Cancels, clean-ups, reapers and workers that want the same job at the same time."""

from __future__ import annotations

import threading
import time

import pytest
import redis
import redis.asyncio
from rq.command import send_stop_job_command
from rq.job import Job
from rq.registry import StartedJobRegistry

from tests.valkey import Valkey
from tests.wire.samples import INFO, QUEUE, QUEUES, delta, finished, make_job, put, stopped
from tests.worker.leases import LEASE_S, outlive_the_lease, status_of
from worker.held_job import StepRecord
from worker.job_store import JobStore
from worker.serializer import RestrictedSerializer
from worker.wire import queueing

pytestmark = pytest.mark.anyio


async def test_an_id_that_is_queued_twice_runs_once(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore, other: JobStore
) -> None:
    await put(async_redis, "a")
    redis_client.rpush(f"rq:queue:{QUEUE}", "a", "a")
    assert len(store.claim(QUEUES, 8) + other.claim(QUEUES, 8)) == 1


async def test_rqs_own_cleanup_racing_our_reaper_runs_a_job_once(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore, other: JobStore
) -> None:
    await put(async_redis, "a")
    store.claim(QUEUES, 1)
    outlive_the_lease()
    registry = StartedJobRegistry(QUEUE, connection=redis_client, serializer=RestrictedSerializer)
    registry.cleanup(time.time() + 1)  # rq counts in whole seconds
    assert other.reap(QUEUES) == ([], [])
    assert [claim.attempt for claim in other.claim(QUEUES, 8)] == [2]
    assert store.emit(StepRecord(endings=[finished("a")])) == {"a"}


async def test_a_lease_renewed_while_rq_cleans_up_does_not_run_the_job_twice(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore, other: JobStore
) -> None:
    """RQ reads, then writes: a beat in between leaves the registry entry of a requeued job."""
    await put(async_redis, "a")
    (claim,) = store.claim(QUEUES, 1)
    job = Job.fetch("a", redis_client, RestrictedSerializer)
    store.beat(["a"], INFO)
    registry = StartedJobRegistry(QUEUE, connection=redis_client, serializer=RestrictedSerializer)
    with redis_client.pipeline() as pipeline:
        job.retry(registry.get_queue(), pipeline)
        pipeline.execute()
    assert store.emit(StepRecord(deltas=[delta("a", 0)])) == {"a"}
    (again,) = other.claim(QUEUES, 1)
    assert registry.get_job_and_execution_ids() == [("a", again.execution_id)]
    assert again.execution_id != claim.execution_id


async def test_a_stop_command_whose_message_is_lost_is_seen_at_the_next_beat(
    async_redis: redis.asyncio.Redis, store: JobStore
) -> None:
    await put(async_redis, "a")
    await put(async_redis, "b")
    store.claim(QUEUES, 2)
    assert await queueing.cancel(async_redis, "a")
    assert store.beat(["a", "b"], INFO).cancelled == {"a"}
    assert not store.emit(StepRecord(endings=[stopped("a")]))
    assert await status_of(async_redis, "a") == "canceled"


async def test_rqs_own_cancel_of_a_running_job_is_seen_at_the_next_beat(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore
) -> None:
    await put(async_redis, "a")
    store.claim(QUEUES, 1)
    Job.fetch("a", redis_client, RestrictedSerializer).cancel()
    assert store.beat(["a"], INFO).cancelled == {"a"}
    assert not store.emit(StepRecord(endings=[stopped("a")]))
    state = await queueing.job_state(async_redis, "a")
    assert state is not None and (state.status, state.ending) == ("canceled", stopped("a").event)
    assert not redis_client.exists("rq:executions:a")


async def test_rqs_own_stop_command_ends_as_stopped(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore
) -> None:
    await put(async_redis, "a")
    store.claim(QUEUES, 1)
    send_stop_job_command(redis_client, "a", RestrictedSerializer)
    store.emit(StepRecord(endings=[stopped("a")]))
    assert await status_of(async_redis, "a") == "stopped"


@pytest.mark.parametrize("reap", [True, False])
async def test_a_cancelled_job_is_not_given_to_another_worker(
    async_redis: redis.asyncio.Redis, store: JobStore, other: JobStore, reap: bool
) -> None:
    await put(async_redis, "a")
    store.claim(QUEUES, 1)
    await queueing.cancel(async_redis, "a")
    outlive_the_lease()
    if reap:
        assert other.reap(QUEUES) == ([], [])
    else:
        store.release(["a"])
    assert other.claim(QUEUES, 1) == []
    assert await status_of(async_redis, "a") == "canceled"


async def test_cancelling_and_finishing_at_once_leave_one_ending(
    async_redis: redis.asyncio.Redis, valkey: Valkey, redis_client: redis.Redis, store: JobStore
) -> None:
    count = 40
    for number in range(count):
        await put(async_redis, f"j{number}")
    ids = [claim.job.job_id for claim in store.claim(QUEUES, count // 2)]
    ids += [f"j{number}" for number in range(count // 2, count)]
    finisher = threading.Thread(target=_finish_each, args=(store, ids[: count // 2]))
    finisher.start()
    for job_id in ids:
        await queueing.cancel(async_redis, job_id)
    finisher.join()
    ended = [redis_client.zrange(f"rq:{name}:{QUEUE}", 0, -1) for name in ("finished", "canceled")]
    assert sorted(job_id.decode() for part in ended for job_id in part) == sorted(ids)
    assert redis_client.zcard(f"rq:wip:{QUEUE}") == redis_client.llen(f"rq:queue:{QUEUE}") == 0


def _finish_each(store: JobStore, ids: list[str]) -> None:
    for job_id in ids:
        store.emit(StepRecord(deltas=[delta(job_id, 0)], endings=[finished(job_id)]))


async def test_workers_that_claim_and_reap_at_once_run_every_job_to_one_end(
    async_redis: redis.asyncio.Redis, valkey: Valkey, redis_client: redis.Redis
) -> None:
    """Some workers die with what they hold; nothing is lost, nothing ends twice."""
    count = 60
    for number in range(count):
        await put(async_redis, make_job(f"j{number}"), max_attempts=50)
    threads = [threading.Thread(target=_work, args=(valkey, n, n % 2 == 0)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert redis_client.zcard(f"rq:finished:{QUEUE}") == count
    assert redis_client.zcard(f"rq:wip:{QUEUE}") == redis_client.llen(f"rq:queue:{QUEUE}") == 0
    assert {redis_client.xlen(f"rq:results:j{number}") for number in range(count)} == {1}


def _work(valkey: Valkey, number: int, dies: bool) -> None:
    deadline = time.monotonic() + 20
    with valkey.connect() as client:
        for life in range(1000):
            store = JobStore(client, f"w{number}-{life}", lease_s=LEASE_S)
            ids = [claim.job.job_id for claim in store.claim(QUEUES, 3)]
            if dies and life < 3:
                continue  # killed: it never speaks of these jobs again
            store.emit(StepRecord(endings=[finished(job_id) for job_id in ids]))
            store.reap(QUEUES)
            done = client.zcard(f"rq:finished:{QUEUE}") == 60
            if done or time.monotonic() > deadline:
                return
            time.sleep(0.005)
