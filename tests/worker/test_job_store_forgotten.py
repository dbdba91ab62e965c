"""A server that comes back with an older memory: logs get their end again, and never a hole."""

from __future__ import annotations

import pytest
import redis
import redis.asyncio

from tests.wire.samples import QUEUES, delta, finished, put
from worker.held_job import StepRecord
from worker.job_store import JobStore
from worker.wire import queueing

pytestmark = pytest.mark.anyio


def _forget(client: redis.Redis, num_entries: int) -> None:
    """Let the server forget the last entries of a log, as one does that restarts."""
    kept = client.xrange("dfl:log:a")[:-num_entries]
    client.delete("dfl:log:a")
    for entry_id, fields in kept:
        client.xadd("dfl:log:a", fields, id=entry_id)


@pytest.mark.parametrize("num_forgotten", [1, 3])
async def test_a_log_that_has_lost_its_end_gets_it_again(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore, num_forgotten: int
) -> None:
    await put(async_redis, "a")
    store.claim(QUEUES, 1)
    for index in range(3):
        store.emit(StepRecord(deltas=[delta("a", index)]))
    _forget(redis_client, num_forgotten)
    assert store.emit(StepRecord(deltas=[delta("a", 3)])) == set()
    assert store.emit(StepRecord(deltas=[delta("a", 4)])) == set()
    log = await queueing.read_log(async_redis, "a")
    assert [one.index for one in log] == [0, 1, 2, 3, 4]


async def test_a_job_does_not_end_before_its_log_is_whole(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore
) -> None:
    await put(async_redis, "a")
    store.claim(QUEUES, 1)
    for index in range(2):
        store.emit(StepRecord(deltas=[delta("a", index)]))
    _forget(redis_client, 1)
    assert store.emit(StepRecord(endings=[finished("a", 2)])) == set()
    assert [one.index for one in await queueing.read_log(async_redis, "a")] == [0, 1]
    state = await queueing.job_state(async_redis, "a")
    assert state is not None and state.status == "finished"


async def test_what_was_forgotten_too_long_ago_is_made_again_by_the_next_claim(
    async_redis: redis.asyncio.Redis,
    redis_client: redis.Redis,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.held_job.KEPT_S", -1.0)
    await put(async_redis, "a")
    store.claim(QUEUES, 1)
    for index in range(4):
        store.emit(StepRecord(deltas=[delta("a", index)]))
    _forget(redis_client, 3)
    assert store.emit(StepRecord(deltas=[delta("a", 4)])) == {"a"}
    (claim,) = store.claim(QUEUES, 1)
    assert [one.index for one in claim.deltas] == [0]
    assert redis_client.hget("rq:job:a", "retries_left") == b"1"
    assert store.emit(StepRecord(deltas=[delta("a", 1)])) == set()
