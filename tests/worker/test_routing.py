"""Workers of one model that offer different things: each job goes to one who can run it."""

from __future__ import annotations

import pytest
import redis
import redis.asyncio
from rq import Queue

from tests.wire.samples import INFO, QUEUE, QUEUES, delta, failed, finished, make_job, put
from tests.worker.leases import outlive_the_lease, status_of
from worker.held_job import StepRecord
from worker.job_store import JobStore
from worker.serializer import RestrictedSerializer
from worker.wire import keys, queueing
from worker.wire.messages import Failed

pytestmark = pytest.mark.anyio

Client = redis.asyncio.Redis


@pytest.fixture
def plain(redis_client: redis.Redis) -> JobStore:
    """A worker without a drafter."""
    return alive(JobStore(redis_client, "plain", modes=["ar"], fingerprint="one"))


@pytest.fixture
def drafting(redis_client: redis.Redis) -> JobStore:
    return alive(JobStore(redis_client, "drafting", modes=["ar", "deer"], fingerprint="two"))


def alive(store: JobStore) -> JobStore:
    store.beat([], INFO)
    return store


def claim(store: JobStore, limit: int = 10) -> list[str]:
    return [one.job.job_id for one in store.claim(QUEUES, limit)]


async def test_a_job_waits_for_a_worker_that_has_its_mode(
    async_redis: Client, plain: JobStore, drafting: JobStore
) -> None:
    await put(async_redis, make_job("deer", mode="deer"))
    await put(async_redis, make_job("ar", mode="ar"))
    await put(async_redis, make_job("any"))
    assert claim(plain) == ["ar", "any"]
    assert claim(plain) == []
    assert await status_of(async_redis, "deer") == "queued"
    await put(async_redis, make_job("later"))
    assert claim(drafting) == ["deer", "later"]


async def test_a_job_on_its_way_to_another_worker_is_where_rq_says_it_is(
    async_redis: Client, redis_client: redis.Redis, plain: JobStore, drafting: JobStore
) -> None:
    await put(async_redis, make_job("one", mode="deer"))
    await put(async_redis, make_job("two", mode="deer"))
    claim(plain)
    queues = {q.name: q for q in Queue.all(redis_client, serializer=RestrictedSerializer)}
    special = queues[f"{QUEUE}.deer"]
    assert special.get_job_ids() == ["one", "two"]
    state = await queueing.job_state(async_redis, "two")
    assert state is not None and state.position == 1
    assert await queueing.cancel(async_redis, "one")
    assert claim(drafting) == ["two"]
    assert special.started_job_registry.get_job_ids() == ["two"]
    drafting.emit(StepRecord(endings=[finished("two", 0)]))
    assert special.finished_job_registry.get_job_ids() == ["two"]
    redis_client.zadd(f"rq:finished:{QUEUE}.deer", {"two": 1})
    plain.reap(QUEUES)
    assert special.finished_job_registry.get_job_ids() == []


async def test_keys_share_the_way_to_another_worker_too(
    async_redis: Client, plain: JobStore, drafting: JobStore
) -> None:
    for number in range(6):
        await put(async_redis, make_job(f"a{number}", mode="deer", tenant="a"))
    claim(plain)
    await put(async_redis, make_job("b0", mode="deer", tenant="b"))
    claim(plain)
    assert claim(drafting) == ["a0", "b0", "a1", "a2", "a3", "a4", "a5"]
    await put(async_redis, make_job("c0", tenant="c"))
    await put(async_redis, make_job("c1", tenant="c"))
    await put(async_redis, make_job("d0", tenant="d"))
    assert claim(drafting) == ["c0", "d0", "c1"]


async def test_the_wait_for_a_worker_ends_when_none_is_left(
    async_redis: Client, redis_client: redis.Redis, plain: JobStore
) -> None:
    drafting = alive(JobStore(redis_client, "d", modes=["ar", "deer"], lease_s=0.25))
    await put(async_redis, make_job("a", mode="deer"))
    claim(plain)
    assert plain.reap(QUEUES) == ([], [])
    assert await status_of(async_redis, "a") == "queued"
    assert claim(drafting) == ["a"]
    outlive_the_lease()
    assert plain.reap(QUEUES) == (["a"], [])
    await put(async_redis, make_job("b", mode="deer"))
    claim(plain)
    plain.reap(QUEUES)
    for name in "ab":
        state = await queueing.job_state(async_redis, name)
        assert state is not None and isinstance(state.ending, Failed)
        assert (state.ending.status, state.ending.code) == (503, "no_such_worker")


async def test_begun_output_waits_for_equal_weights_that_live(
    async_redis: Client, redis_client: redis.Redis, plain: JobStore, drafting: JobStore
) -> None:
    twin = alive(JobStore(redis_client, "twin", modes=["ar", "deer"], fingerprint="two"))
    await put(async_redis, make_job("a", mode="deer"))
    await put(async_redis, make_job("b"))
    assert claim(drafting) == ["a", "b"]
    drafting.emit(StepRecord(deltas=[delta("a", 0), delta("b", 0)]))
    drafting.release(["a", "b"])
    assert claim(plain) == []
    special = redis_client.smembers(f"dfl:special:{QUEUES[0]}")
    assert special == {f"{QUEUE}.kind-two".encode(), f"{QUEUE}.deer.kind-two".encode()}
    claims = twin.claim(QUEUES, 10)
    assert {one.job.job_id: one.deltas for one in claims} == {
        "a": [delta("a", 0)],
        "b": [delta("b", 0)],
    }


async def test_a_job_that_waits_for_its_worker_is_not_starved_either(
    async_redis: Client, redis_client: redis.Redis, plain: JobStore
) -> None:
    drafting = JobStore(redis_client, "d", modes=["ar", "deer"], overdue_s=1e-6, overdue_share=0.25)
    alive(drafting)
    for number in range(10):
        await put(async_redis, make_job(f"b{number}", mode="deer"), queue=QUEUES[2])
    claim(plain)
    served = []
    for number in range(40):
        await put(async_redis, make_job(f"i{number}"), queue=QUEUES[0])
        served += claim(drafting, 1)
    assert sum(name.startswith("b") for name in served) == pytest.approx(10, abs=1)


async def test_a_draining_worker_offers_nothing(
    async_redis: Client, redis_client: redis.Redis, plain: JobStore
) -> None:
    leaving = JobStore(redis_client, "leaving", modes=["deer"])
    leaving.beat([], INFO.__class__(INFO.name, INFO.model, 8, is_draining=True))
    await put(async_redis, make_job("a", mode="deer"))
    assert claim(plain) == []
    assert await status_of(async_redis, "a") == "failed"


async def test_who_can_run_a_job_hears_that_it_has_come_back(
    async_redis: Client, redis_client: redis.Redis, plain: JobStore, drafting: JobStore
) -> None:
    for name in "ab":
        await put(async_redis, make_job(name, mode="deer"), max_running=1)
    claim(plain)
    assert claim(drafting) == ["a"]
    heard = redis_client.pubsub(ignore_subscribe_messages=True)
    heard.subscribe(keys.wake_channel(QUEUE))
    heard.get_message(timeout=1)
    drafting.release(["a"])
    assert claim(drafting) == ["a"]
    drafting.emit(StepRecord(endings=[finished("a", 0)]))
    messages = [heard.get_message(timeout=1) for _ in range(3)]
    assert [one and one["data"] for one in messages] == [QUEUE.encode()] * 3
    assert claim(drafting) == ["b"]


async def test_the_place_of_a_job_on_its_way_counts_more_urgent_ones(
    async_redis: Client, plain: JobStore
) -> None:
    alive(JobStore(plain._redis, "drafting", modes=["deer"]))
    await put(async_redis, make_job("a", mode="deer"))
    claim(plain)
    await put(async_redis, make_job("b"), queue=QUEUES[0])
    state = await queueing.job_state(async_redis, "a")
    assert state is not None and state.position == 1


async def test_a_cancelled_job_on_its_way_gives_its_turn_back(
    async_redis: Client, plain: JobStore, drafting: JobStore
) -> None:
    await put(async_redis, make_job("a", mode="deer"))
    await put(async_redis, make_job("b"))
    claim(plain, 1)
    turn = await async_redis.zscore(f"dfl:shares:{QUEUE}", "tenant")
    assert await queueing.cancel(async_redis, "a")
    assert await async_redis.zscore(f"dfl:shares:{QUEUE}", "tenant") == turn - 1


async def test_a_job_of_little_time_does_not_end_the_way_of_the_others(
    async_redis: Client, redis_client: redis.Redis, plain: JobStore, drafting: JobStore
) -> None:
    await put(async_redis, make_job("a", mode="deer"), timeout_s=5000)
    claim(plain)
    await put(async_redis, make_job("b", mode="deer"), timeout_s=10)
    claim(plain)
    assert redis_client.ttl(f"dfl:special:{QUEUES[0]}") > 5000 + 3600


async def test_a_special_queue_is_gone_once_nothing_is_known_of_its_jobs(
    async_redis: Client, redis_client: redis.Redis, plain: JobStore, drafting: JobStore
) -> None:
    await put(async_redis, make_job("a", mode="deer"))
    claim(plain)
    special = f"dfl:special:{QUEUES[0]}"
    for _ in ("waits", "runs", "has ended"):
        plain.reap(QUEUES)
        assert redis_client.exists(special)
        if claim(drafting) == []:
            drafting.emit(StepRecord(endings=[finished("a", 0)]))
    redis_client.zadd(f"rq:finished:{QUEUE}.deer", {"a": 1})
    plain.reap(QUEUES)
    assert not redis_client.exists(special)


async def test_a_job_that_runs_is_reaped_whatever_became_of_its_queues_listing(
    async_redis: Client, redis_client: redis.Redis, plain: JobStore
) -> None:
    drafting = alive(JobStore(redis_client, "d", modes=["deer"], lease_s=0.25))
    await put(async_redis, make_job("a", mode="deer"))
    claim(plain)
    assert claim(drafting) == ["a"]
    redis_client.delete(f"dfl:special:{QUEUES[0]}")
    outlive_the_lease()
    assert plain.reap(QUEUES) == (["a"], [])


async def test_a_job_that_an_operator_requeues_into_a_forgotten_queue_is_found(
    async_redis: Client, redis_client: redis.Redis, plain: JobStore, drafting: JobStore
) -> None:
    await put(async_redis, make_job("a", mode="deer"))
    claim(plain)
    assert claim(drafting) == ["a"]
    drafting.emit(StepRecord(endings=[failed("a")]))
    redis_client.delete(f"dfl:special:{QUEUES[0]}")
    queue = Queue(f"{QUEUE}.deer", connection=redis_client, serializer=RestrictedSerializer)
    queue.failed_job_registry.requeue("a")
    other_model = f"{QUEUE}.x.default"  # of a model whose name begins as this one's queue
    await put(async_redis, "b", queue=other_model)
    plain.reap(QUEUES)
    assert redis_client.smembers(f"dfl:special:{QUEUES[0]}") == {f"{QUEUE}.deer".encode()}
    assert claim(drafting) == ["a"]
