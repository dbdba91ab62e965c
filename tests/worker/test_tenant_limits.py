"""How many jobs of a key may run and wait, over all workers, whatever happens to them."""

from __future__ import annotations

import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
import redis.asyncio
from rq import Queue
from rq.job import Job, JobStatus

from tests.valkey import Valkey
from tests.wire.samples import INFO, QUEUE, QUEUES, finished, make_job, put
from tests.worker.leases import LEASE_S, outlive_the_lease, status_of
from tests.worker.test_job_store_rq import BIN
from worker.held_job import StepRecord
from worker.job_store import JobStore
from worker.serializer import RestrictedSerializer
from worker.wire import queueing

pytestmark = pytest.mark.anyio

Client = redis.asyncio.Redis


async def put_of(client: Client, tenant: str, *names: str, max_running: int = 2) -> None:
    for name in names:
        await put(client, make_job(name, tenant=tenant), max_running=max_running)


def claim(store: JobStore, limit: int = 100) -> list[str]:
    return [one.job.job_id for one in store.claim(QUEUES, limit)]


def end(store: JobStore, *names: str) -> None:
    assert not store.emit(StepRecord(endings=[finished(name, 0) for name in names]))


def queue_of(client: redis.Redis) -> Queue:
    return Queue(QUEUE, connection=client, serializer=RestrictedSerializer)


def num_running(client: redis.Redis, tenant: str) -> int:
    return int(client.zcard(f"dfl:running:{tenant}"))


async def test_of_a_key_no_more_run_than_may_and_others_do_not_wait_for_it(
    async_redis: Client, store: JobStore, other: JobStore
) -> None:
    await put_of(async_redis, "a", *"abcdefgh")
    await put_of(async_redis, "z", "x", "y", "z")
    assert sorted(claim(store)) == ["a", "b", "x", "y"]
    assert claim(other) == []
    end(store, "x")
    assert claim(other) == ["z"]
    end(store, "b")
    assert claim(other) == ["c"]


async def test_what_waits_for_its_key_comes_back_in_order(
    async_redis: Client, store: JobStore
) -> None:
    names = list("abcdefgh")
    await put_of(async_redis, "a", *names[:5], max_running=1)
    ran = claim(store)
    await put_of(async_redis, "a", *names[5:], max_running=1)
    while len(ran) < len(names):
        end(store, ran[-1])
        (name,) = claim(store)
        ran.append(name)
    assert ran == names


async def test_rq_shows_what_waits_for_its_key_as_deferred(
    async_redis: Client, redis_client: redis.Redis, valkey: Valkey, other: JobStore
) -> None:
    await put_of(async_redis, "a", *"abcd")
    claim(other)
    queue = queue_of(redis_client)
    assert (queue.get_job_ids(), queue.deferred_job_registry.get_job_ids()) == ([], ["c", "d"])
    job = Job.fetch("c", connection=redis_client, serializer=RestrictedSerializer)
    assert job.get_status() == JobStatus.DEFERRED
    state = await queueing.job_state(async_redis, "d")
    assert state is not None and (state.status, state.position) == ("deferred", 1)
    command = [str(BIN / "rq"), "info", "-u", valkey.url]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    (line,) = [line for line in shown.splitlines() if line.startswith(QUEUE)]
    assert "0, 2 executing" in line
    end(other, "a")
    assert (queue.get_job_ids(), queue.deferred_job_registry.get_job_ids()) == (["c"], ["d"])


async def test_more_jobs_out_of_the_way_than_one_call_looks_at_wake_the_worker_again(
    async_redis: Client, redis_client: redis.Redis, store: JobStore
) -> None:
    await put_of(async_redis, "a", *(f"a{number}" for number in range(280)), max_running=1)
    assert claim(store, 1) == ["a0"]
    wake = redis_client.pubsub(ignore_subscribe_messages=True)
    wake.subscribe(f"dfl:wake:{QUEUES[0]}")
    wake.get_message(timeout=1)
    assert claim(store, 1) == []
    assert wake.get_message(timeout=1) is not None
    assert claim(store, 1) == []
    assert wake.get_message(timeout=0.05) is None
    assert redis_client.zcard(f"rq:deferred:{QUEUE}") == 279
    wake.close()


async def test_the_limit_holds_while_many_workers_claim_and_finish_at_once(
    async_redis: Client, redis_client: redis.Redis, valkey: Valkey
) -> None:
    limits = {"a": 3, "b": 5}
    for number in range(80):
        for tenant, limit in limits.items():
            await put_of(async_redis, tenant, f"{tenant}{number}", max_running=limit)
    running: Counter[str] = Counter()
    lock = threading.Lock()
    most: Counter[str] = Counter()
    left = {f"{tenant}{number}" for number in range(80) for tenant in limits}

    def work(number: int) -> None:
        with valkey.connect() as client:
            store = JobStore(client, f"w{number}")
            while left:
                # Counted from after a claim's reply until before an end is sent: never too many.
                names = claim(store, 3)
                with lock:
                    running.update(name[0] for name in names)
                    most.update({key: max(0, running[key] - most[key]) for key in running})
                time.sleep(0.002)  # the others claim meanwhile
                with lock:
                    running.subtract(name[0] for name in names)
                end(store, *names)
                left.difference_update(names)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work, number) for number in range(4)]:
            future.result(timeout=60)
    assert most == limits
    assert queue_of(redis_client).finished_job_registry.count == 160
    assert [num_running(redis_client, tenant) for tenant in limits] == [0, 0]


async def test_a_dead_workers_places_are_free_once_its_jobs_are_taken_back(
    async_redis: Client, redis_client: redis.Redis, store: JobStore, other: JobStore
) -> None:
    await put_of(async_redis, "a", *"abcd")
    claim(store)
    outlive_the_lease()
    assert claim(other) == []  # they may still run
    other.reap(QUEUES)
    assert num_running(redis_client, "a") == 0
    assert claim(other) == ["a", "b"]
    assert claim(other) == []
    other.reap_worker("w2")
    assert num_running(redis_client, "a") == 0


async def test_release_and_cancel_free_places(
    async_redis: Client, redis_client: redis.Redis, store: JobStore
) -> None:
    await put_of(async_redis, "a", *"abcdef")
    claim(store)
    store.release(["a"])
    assert claim(store) == ["a"]
    assert await queueing.cancel(async_redis, "c")  # waits for its key
    assert await status_of(async_redis, "c") == "canceled"
    end(store, "a")
    assert claim(store) == ["d"]
    assert num_running(redis_client, "a") == 2
    assert not redis_client.zscore(f"rq:deferred:{QUEUE}", "c")


async def test_what_rqs_tools_take_away_blocks_nothing(
    async_redis: Client, redis_client: redis.Redis, store: JobStore
) -> None:
    await put_of(async_redis, "a", *"abcdef")
    claim(store)
    for name in "ac":  # one runs, one waits for its key
        Job.fetch(name, connection=redis_client, serializer=RestrictedSerializer).cancel()
    Job.fetch("d", connection=redis_client, serializer=RestrictedSerializer).delete()
    assert store.beat(["a", "b"], INFO).cancelled == {"a"}
    end(store, "b")
    assert claim(store) == ["e"]


async def test_a_job_that_rqs_clean_up_has_put_back_is_not_in_its_own_way(
    async_redis: Client, redis_client: redis.Redis, store: JobStore, other: JobStore
) -> None:
    await put_of(async_redis, "a", "a", "b", max_running=1)
    claim(store)
    running = f"rq:wip:{QUEUE}"
    redis_client.zadd(running, {redis_client.zrange(running, 0, 0)[0]: 1})  # long over for RQ
    queue_of(redis_client).started_job_registry.cleanup()
    assert queue_of(redis_client).get_job_ids() == ["a"]
    assert claim(other) == ["a"]
    assert num_running(redis_client, "a") == 1


async def test_places_that_nobody_gave_back_run_out(
    async_redis: Client, redis_client: redis.Redis, store: JobStore, other: JobStore
) -> None:
    await put_of(async_redis, "a", *"abc")
    claim(store)
    redis_client.delete("rq:job:a", "rq:job:b")  # by hand; the members are left
    redis_client.zadd(
        "dfl:running:a", dict.fromkeys(redis_client.zrange("dfl:running:a", 0, -1), 1)
    )
    other.reap(QUEUES)
    assert claim(other) == ["c"]
    assert num_running(redis_client, "a") == 3  # two of them are only names
    assert 0 < redis_client.ttl("dfl:running:a") <= 120


async def test_a_renewed_lease_keeps_the_place(
    async_redis: Client, redis_client: redis.Redis, store: JobStore
) -> None:
    await put_of(async_redis, "a", "a", max_running=1)
    claim(store)
    (before,) = redis_client.zrange("dfl:running:a", 0, -1, withscores=True)
    store.beat(["a"], INFO)
    (after,) = redis_client.zrange("dfl:running:a", 0, -1, withscores=True)
    assert after[0] == before[0] and after[1] > before[1] > LEASE_S


async def test_a_job_whose_time_ends_while_it_waits_for_its_key_is_told_so(
    async_redis: Client, redis_client: redis.Redis, store: JobStore
) -> None:
    await put_of(async_redis, "a", *"abc")
    claim(store)
    redis_client.hset("rq:job:c", "dfl_deadline", 1)
    store.reap(QUEUES)
    state = await queueing.job_state(async_redis, "c")
    assert state is not None and state.status == "failed"
    assert redis_client.zcard(f"rq:deferred:{QUEUE}") == 0


async def put_limited(client: Client, name: str, tenant: str = "a") -> None:
    await put(client, make_job(name, tenant=tenant), max_waiting=3)


async def test_a_key_with_enough_jobs_waiting_is_refused_and_others_are_not(
    async_redis: Client, store: JobStore
) -> None:
    for name in "abc":
        await put_limited(async_redis, name)
    with pytest.raises(queueing.TenantQueueFullError) as caught:
        await put_limited(async_redis, "d")
    assert (caught.value.queue_length, caught.value.retry_after_s) == (3, 10)
    assert await queueing.job_state(async_redis, "d") is None
    await put_limited(async_redis, "z", tenant="z")
    claim(store, 1)
    assert await async_redis.zcard("dfl:queued:a") == 2
    await put_limited(async_redis, "d")
    assert await queueing.cancel(async_redis, "d")
    await put_limited(async_redis, "e")


async def test_a_job_that_goes_back_waits_again_and_ends_as_nobodys(
    async_redis: Client, redis_client: redis.Redis, store: JobStore, other: JobStore
) -> None:
    for name in "abc":
        await put_limited(async_redis, name)
    claim(store)
    outlive_the_lease()
    other.reap(QUEUES)
    with pytest.raises(queueing.TenantQueueFullError):
        await put_limited(async_redis, "d")
    claim(other)
    end(other, *"abc")
    assert redis_client.zcard("dfl:queued:a") == 0


async def test_what_rqs_tools_took_away_is_not_counted_when_it_matters(
    async_redis: Client, redis_client: redis.Redis
) -> None:
    for name in "abc":
        await put_limited(async_redis, name)
    queue_of(redis_client).empty()
    for name in "def":
        await put_limited(async_redis, name)
    with pytest.raises(queueing.TenantQueueFullError):
        await put_limited(async_redis, "g")


async def test_limits_leave_no_key_without_an_end(
    async_redis: Client, redis_client: redis.Redis, store: JobStore
) -> None:
    for name in "abcd":
        await put(async_redis, make_job(name, tenant="a"), max_running=1, max_waiting=9)
    claim(store)
    ours = redis_client.keys("dfl:*")
    assert {b"dfl:lanes", b"dfl:lanes:a", b"dfl:running:a", b"dfl:queued:a"} <= set(ours)
    assert all(redis_client.ttl(key) > 0 for key in ours)
