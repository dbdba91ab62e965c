"""Keys share a queue fairly, and no queue starves, against a real server."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import redis
import redis.asyncio
from rq import Queue
from rq.job import Job

from tests.wire.samples import QUEUE, QUEUES, finished, make_job, put
from tests.worker.leases import outlive_the_lease
from worker.held_job import StepRecord
from worker.job_store import JobStore
from worker.serializer import RestrictedSerializer
from worker.wire import queueing

pytestmark = pytest.mark.anyio

Client = redis.asyncio.Redis


async def put_of(client: Client, tenant: str, *names: str, queue: str = QUEUE) -> list[int]:
    return [await put(client, make_job(name, tenant=tenant), queue=queue) for name in names]


def claim(store: JobStore, limit: int = 100) -> list[str]:
    return [one.job.job_id for one in store.claim(QUEUES, limit)]


def many(tenant: str, count: int) -> list[str]:
    return [f"{tenant}{number}" for number in range(count)]


async def test_jobs_of_one_key_are_served_in_the_order_in_which_they_came(
    async_redis: Client, store: JobStore
) -> None:
    names = many("a", 50)
    assert await put_of(async_redis, "a", *names) == list(range(50))
    assert claim(store) == names


async def test_one_job_of_another_key_does_not_wait_behind_a_thousand(
    async_redis: Client, store: JobStore
) -> None:
    await put_of(async_redis, "greedy", *many("g", 999))
    assert await put_of(async_redis, "modest", "m") == [1]
    assert claim(store, 2) == ["g0", "m"]


async def test_it_does_not_wait_behind_them_while_they_are_being_served_either(
    async_redis: Client, store: JobStore
) -> None:
    await put_of(async_redis, "greedy", *many("g", 300))
    claim(store, 200)
    assert await put_of(async_redis, "modest", "m", "m1") == [0, 2]
    assert claim(store, 4) == ["m", "g200", "m1", "g201"]


async def test_a_key_that_waited_for_nothing_has_saved_nothing_up(
    async_redis: Client, store: JobStore
) -> None:
    await put_of(async_redis, "a", *many("a", 100))
    claim(store, 50)
    await put_of(async_redis, "b", *many("b", 50))
    counts = Counter(name[0] for name in claim(store, 40))
    assert counts == {"a": 20, "b": 20}


async def test_over_a_skewed_load_every_key_that_waits_gets_the_same(
    async_redis: Client, store: JobStore
) -> None:
    loads = {"a": 400, "b": 100, "c": 60, "d": 30}
    arrivals = [tenant for tenant, count in loads.items() for _ in range(count)]
    random.Random(3).shuffle(arrivals)
    for number, tenant in enumerate(arrivals):
        await put_of(async_redis, tenant, f"{tenant}{number}")
    served = [name[0] for _ in range(60) for name in claim(store, 2)]
    # While all four wait, each gets a quarter; d's 30 jobs are through after about 120.
    assert all(abs(count - 30) <= 2 for count in Counter(served).values())
    rest = [name[0] for name in claim(store, 60)]
    assert {tenant: rest.count(tenant) for tenant in "abc"} == pytest.approx(
        {"a": 20, "b": 20, "c": 20}, abs=2
    )


async def test_a_job_of_many_choices_takes_as_many_turns(
    async_redis: Client, store: JobStore
) -> None:
    for number in range(3):
        await put(async_redis, make_job(f"wide{number}", tenant="w", num_prompts=4))
    await put_of(async_redis, "n", *many("n", 9))
    assert claim(store) == [
        *("wide0", "n0", "n1", "n2", "n3"),
        *("wide1", "n4", "n5", "n6", "n7"),
        *("wide2", "n8"),
    ]


async def test_rq_shows_the_jobs_in_the_order_in_which_they_are_served(
    async_redis: Client, redis_client: redis.Redis, store: JobStore
) -> None:
    await put_of(async_redis, "a", "a0", "a1", "a2")
    await put_of(async_redis, "b", "b0", "b1")
    queue = Queue(QUEUE, connection=redis_client, serializer=RestrictedSerializer)
    shown = queue.get_job_ids()
    job = Job.fetch("b1", connection=redis_client, serializer=RestrictedSerializer)
    assert job.get_position() == shown.index("b1") == 3
    state = await queueing.job_state(async_redis, "b1")
    assert state is not None and state.position == 3
    assert claim(store) == shown


async def test_what_a_key_takes_back_does_not_count_against_it(
    async_redis: Client, store: JobStore
) -> None:
    await put_of(async_redis, "a", *many("a", 20))
    await put_of(async_redis, "b", *many("b", 20))
    for name in many("b", 20):
        assert await queueing.cancel(async_redis, name)
    assert await put_of(async_redis, "b", "late") == [1]


async def test_an_emptied_queue_has_no_memory(
    async_redis: Client, redis_client: redis.Redis, store: JobStore
) -> None:
    await put_of(async_redis, "a", *many("a", 20))
    Queue(QUEUE, connection=redis_client, serializer=RestrictedSerializer).empty()
    await put_of(async_redis, "b", "b0", "b1")
    assert await put_of(async_redis, "a", "again") == [1]


async def test_a_queue_that_one_key_has_filled_takes_a_job_of_each_other_key(
    async_redis: Client, store: JobStore
) -> None:
    async def put_into_full(name: str) -> None:
        await put(async_redis, make_job(name, tenant=name[0]), max_queue_size=20)

    await put_of(async_redis, "g", *many("g", 20))
    for tenant in "ab":
        await put_into_full(f"{tenant}0")
        with pytest.raises(queueing.QueueFullError):
            await put_into_full(f"{tenant}1")
    with pytest.raises(queueing.QueueFullError):
        await put_into_full("g20")
    assert claim(store, 5) == ["g0", "a0", "b0", "g1", "g2"]
    await put_into_full("a1")


async def test_lost_turns_cost_nobody_a_job_nor_its_place_before_later_ones(
    async_redis: Client, redis_client: redis.Redis, store: JobStore
) -> None:
    await put_of(async_redis, "a", *many("a", 8))
    assert claim(store, 3) == ["a0", "a1", "a2"]
    redis_client.delete(f"dfl:shares:{QUEUE}")
    await put_of(async_redis, "a", "late0", "late1")
    await put_of(async_redis, "b", "b0")
    assert claim(store) == ["a3", "late0", "b0", "a4", "late1", *many("a", 8)[5:]]


async def test_a_dead_workers_job_is_the_next_whatever_its_keys_turn_is(
    async_redis: Client, store: JobStore, other: JobStore
) -> None:
    await put_of(async_redis, "a", *many("a", 10))
    assert claim(store, 3) == ["a0", "a1", "a2"]
    await put_of(async_redis, "b", *many("b", 10))
    outlive_the_lease()
    other.reap(QUEUES)
    assert await put_of(async_redis, "c", "c0") == [4]
    assert claim(other, 5) == ["a0", "a1", "a2", "b0", "c0"]


async def test_batch_is_served_while_interactive_jobs_never_end(
    async_redis: Client, redis_client: redis.Redis
) -> None:
    store = JobStore(redis_client, "w", overdue_s=1e-6, overdue_share=0.25)
    await put_of(async_redis, "a", *many("b", 40), queue=QUEUES[2])
    await put_of(async_redis, "a", *many("d", 40), queue=QUEUES[1])
    served: list[str] = []
    for number in range(160):
        await put_of(async_redis, "a", f"i{number}", queue=QUEUES[0])
        served += claim(store, 1)
    counts = Counter(name[0] for name in served)
    assert counts["i"] == pytest.approx(120, abs=2)
    assert counts["d"] == pytest.approx(20, abs=2)
    assert counts["b"] == pytest.approx(20, abs=2)


async def test_the_share_of_overdue_queues_is_not_spent_on_the_one_that_is_served_anyway(
    async_redis: Client, redis_client: redis.Redis
) -> None:
    store = JobStore(redis_client, "w", overdue_s=1e-6, overdue_share=0.25)
    await put_of(async_redis, "a", *many("b", 40), queue=QUEUES[2])
    await put_of(async_redis, "a", *many("d", 40), queue=QUEUES[1])
    served = [name for _ in range(40) for name in claim(store, 1)]
    assert sum(name.startswith("b") for name in served) == pytest.approx(10, abs=1)


async def test_a_queue_that_is_not_overdue_waits_for_the_more_urgent_ones(
    async_redis: Client, redis_client: redis.Redis
) -> None:
    for overdue_s in (60.0, 0.0):
        store = JobStore(redis_client, "w", overdue_s=overdue_s, overdue_share=1.0)
        await put_of(async_redis, "a", f"late{overdue_s}", queue=QUEUES[2])
        urgent = [f"u{overdue_s}-{number}" for number in range(20)]
        await put_of(async_redis, "a", *urgent, queue=QUEUES[0])
        assert [name for _ in urgent for name in claim(store, 1)] == urgent
        assert claim(store, 1) == [f"late{overdue_s}"]


async def test_a_queue_that_was_served_is_not_overdue_any_more(
    async_redis: Client, redis_client: redis.Redis
) -> None:
    store = JobStore(redis_client, "w", overdue_s=1e-6, overdue_share=1.0)
    await put_of(async_redis, "a", "b0", queue=QUEUES[2])
    await put_of(async_redis, "a", "i0", "i1", queue=QUEUES[0])
    assert claim(store, 1) == ["i0"]
    assert claim(store, 2) == ["b0", "i1"]
    assert not redis_client.keys("dfl:passed:*")


async def test_the_order_leaves_no_key_without_an_end(
    async_redis: Client, redis_client: redis.Redis, store: JobStore
) -> None:
    for tenant in ("a", "b"):
        await put_of(async_redis, tenant, *many(tenant, 3), queue=QUEUES[1])
        await put_of(async_redis, tenant, *many(f"{tenant}-batch", 3), queue=QUEUES[2])
    (first,) = claim(store, 1)
    store.emit(StepRecord(endings=[finished(first)]))
    ours = redis_client.keys("dfl:*")
    assert {f"dfl:shares:{QUEUE}".encode(), f"dfl:passed:{QUEUES[2]}".encode()} <= set(ours)
    assert all(redis_client.ttl(key) > 0 for key in ours)
