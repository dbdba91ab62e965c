"""What happens to jobs when workers, messages and connections fail."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
import redis.asyncio
from rq.job import Job

from tests.wire.samples import INFO, QUEUES, delta, finished, put
from tests.worker.leases import LEASE_S, outlive_the_lease, status_of
from worker.held_job import StepRecord
from worker.job_store import JobStore
from worker.serializer import RestrictedSerializer
from worker.wire import codec, queueing
from worker.wire.messages import Failed

pytestmark = pytest.mark.anyio


async def test_a_dead_workers_jobs_continue_elsewhere_where_their_log_ends(
    async_redis: redis.asyncio.Redis, store: JobStore, other: JobStore
) -> None:
    await put(async_redis, "a")
    await put(async_redis, "waiting")
    store.claim(QUEUES, 1)
    store.emit(StepRecord(deltas=[delta("a", 0), delta("a", 1)]))
    assert other.reap(QUEUES) == ([], [])
    outlive_the_lease()
    assert other.reap(QUEUES) == (["a"], [])
    assert other.reap(QUEUES) == ([], [])
    claim, _ = other.claim(QUEUES, 2)
    assert (claim.job.job_id, claim.attempt) == ("a", 2)
    assert claim.deltas == [delta("a", 0), delta("a", 1)]
    assert not other.emit(StepRecord(deltas=[delta("a", 2)], endings=[finished("a", 3)]))
    assert [d.index for d in await queueing.read_log(async_redis, "a")] == [0, 1, 2]


@pytest.mark.parametrize("begun", [True, False])
async def test_other_weights_do_not_continue_an_answer_but_may_start_it(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis, begun: bool
) -> None:
    first = JobStore(redis_client, "w1", fingerprint="one")
    second = JobStore(redis_client, "w2", fingerprint="two")
    await put(async_redis, "a")
    first.claim(QUEUES, 1)
    if begun:
        first.emit(StepRecord(deltas=[delta("a", 0)]))
    first.release(["a"])
    assert len(second.claim(QUEUES, 1)) == (0 if begun else 1)
    assert await status_of(async_redis, "a") == ("failed" if begun else "started")


async def test_a_beat_keeps_the_lease(
    async_redis: redis.asyncio.Redis, store: JobStore, other: JobStore
) -> None:
    await put(async_redis, "a")
    store.claim(QUEUES, 1)
    for _ in range(3):
        time.sleep(LEASE_S * 0.6)
        assert not store.beat(["a"], INFO).lost
    assert other.reap(QUEUES) == ([], [])


async def test_a_job_that_kills_its_workers_fails_with_a_reason_in_the_end(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore
) -> None:
    await put(async_redis, "a", max_attempts=2)
    reaped = []
    for _ in range(2):
        assert len(store.claim(QUEUES, 1)) == 1
        outlive_the_lease()
        reaped.append(store.reap(QUEUES))
    assert reaped == [(["a"], []), ([], ["a"])]
    state = await queueing.job_state(async_redis, "a")
    assert state is not None and isinstance(state.ending, Failed)
    assert (state.status, state.ending.code) == ("failed", "worker_lost")
    result = Job.fetch("a", redis_client, RestrictedSerializer).latest_result()
    assert result is not None and "the worker died" in str(result.exc_string)


async def test_a_frozen_worker_that_returns_is_refused(
    async_redis: redis.asyncio.Redis, store: JobStore, other: JobStore
) -> None:
    await put(async_redis, "a")
    store.claim(QUEUES, 1)
    outlive_the_lease()
    other.reap(QUEUES)
    other.claim(QUEUES, 1)
    other.emit(StepRecord(deltas=[delta("a", 0)]))
    zombie = StepRecord(deltas=[delta("a", 0), delta("a", 1)], endings=[finished("a", 2)])
    assert store.emit(zombie) == {"a"}
    assert store.beat(["a"], INFO).lost == {"a"}
    store.release(["a"])
    assert await status_of(async_redis, "a") == "started"
    assert [d.index for d in await queueing.read_log(async_redis, "a")] == [0]
    assert not other.beat(["a"], INFO).lost


async def test_a_beat_tells_of_the_jobs_that_another_worker_has_taken(
    async_redis: redis.asyncio.Redis, store: JobStore, other: JobStore
) -> None:
    await put(async_redis, "a")
    await put(async_redis, "b")
    store.claim(QUEUES, 1)
    outlive_the_lease()
    other.reap(QUEUES)
    other.claim(QUEUES, 1)
    store.claim(QUEUES, 1)
    assert store.beat(["a", "b"], INFO).lost == {"a"}


async def test_a_worker_that_is_known_to_be_dead_is_not_waited_for(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis
) -> None:
    dead = JobStore(redis_client, "w1", lease_s=60)
    for name in ("a", "b", "c"):
        await put(async_redis, name, max_attempts=1 if name == "b" else 2)
    dead.claim(QUEUES, 2)
    supervisor = JobStore(redis_client, "supervisor")
    assert supervisor.reap_worker("w1") == (["a"], ["b"])
    assert supervisor.reap_worker("w1") == ([], [])
    assert [c.job.job_id for c in supervisor.claim(QUEUES, 3)] == ["a", "c"]


async def test_a_step_that_never_arrived_is_sent_again_without_doubles(
    async_redis: redis.asyncio.Redis,
    redis_client: redis.Redis,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await put(async_redis, "a")
    store.claim(QUEUES, 1)
    step = StepRecord(deltas=[delta("a", 0)])
    with monkeypatch.context() as patch:
        patch.setattr(redis_client, "evalsha", _losing_the_command)
        with pytest.raises(redis.ConnectionError):
            store.emit(step)
    assert store.emit(step) == set()
    ((_, fields),) = redis_client.xrange("dfl:log:a")
    assert codec.decode_log_entry(fields[b"d"]).deltas == step.deltas


@pytest.mark.parametrize("ending", [True, False])
async def test_a_step_sent_twice_is_written_once(
    async_redis: redis.asyncio.Redis,
    redis_client: redis.Redis,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
    ending: bool,
) -> None:
    """The reply gets lost: the worker cannot know that Redis has the step."""
    await put(async_redis, "a")
    store.claim(QUEUES, 1)
    step = StepRecord(deltas=[delta("a", 0)], endings=[finished("a")] if ending else [])
    with monkeypatch.context() as patch:
        patch.setattr(redis_client, "evalsha", _losing_the_reply(redis_client))
        with pytest.raises(redis.ConnectionError):
            store.emit(step)
    assert store.emit(step) == set()
    assert [d.index for d in await queueing.read_log(async_redis, "a")] == [0]
    assert redis_client.xlen("rq:results:a") == ending
    assert await status_of(async_redis, "a") == ("finished" if ending else "started")


async def test_jobs_of_a_claim_whose_reply_got_lost_go_back_at_the_next_beat(
    async_redis: redis.asyncio.Redis,
    redis_client: redis.Redis,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await put(async_redis, "lost")
    await put(async_redis, "kept")
    with monkeypatch.context() as patch:
        patch.setattr(redis_client, "evalsha", _losing_the_reply(redis_client))
        with pytest.raises(redis.ConnectionError):
            store.claim(QUEUES, 1)
    assert [claim.job.job_id for claim in store.claim(QUEUES, 1)] == ["kept"]
    store.beat(["kept"], INFO)
    assert await status_of(async_redis, "kept") == "started"
    assert [claim.job.job_id for claim in store.claim(QUEUES, 1)] == ["lost"]
    assert redis_client.hget("rq:job:lost", "retries_left") == b"1"


async def test_a_claim_that_cannot_read_the_log_gives_its_jobs_back_at_the_next_beat(
    async_redis: redis.asyncio.Redis,
    redis_client: redis.Redis,
    store: JobStore,
    other: JobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await put(async_redis, "a")
    other.claim(QUEUES, 1)
    other.release(["a"])
    with monkeypatch.context() as patch:
        patch.setattr(redis_client, "pipeline", _losing_the_command)
        with pytest.raises(redis.ConnectionError):
            store.claim(QUEUES, 1)
    store.beat([], INFO)
    (claim,) = store.claim(QUEUES, 1)
    assert claim.attempt == 3
    assert redis_client.hget("rq:job:a", "retries_left") == b"1"


def _losing_the_command(*_: Any, **__: Any) -> Any:
    raise redis.ConnectionError("the command got lost")


def _losing_the_reply(client: redis.Redis) -> Callable[..., Any]:
    really = client.evalsha

    def evalsha(*arguments: Any) -> Any:
        try:
            really(*arguments)
        except redis.exceptions.NoScriptError:
            client.script_load(_text_of(arguments[0]))
            really(*arguments)
        raise redis.ConnectionError("the reply got lost")

    return evalsha


def _text_of(sha: str) -> str:
    from worker.wire import lua

    return next(s.text for s in map(lua.load, ("claim", "emit")) if s.sha == sha)
