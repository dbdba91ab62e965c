"""The API's side of the queue, against a real server."""

from __future__ import annotations

import msgspec
import pytest
import redis
import redis.asyncio
from rq.job import Job

from tests.valkey import Valkey
from tests.wire.samples import (
    INFO,
    MODEL,
    PROMPT,
    QUEUE,
    QUEUES,
    delta,
    finished,
    make_job,
    put,
)
from worker.held_job import StepRecord
from worker.job_store import JobStore
from worker.serializer import RestrictedSerializer
from worker.wire import codec, keys, queueing
from worker.wire.messages import Accepted, Failed, ModelInfo, WorkerInfo

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(redis_client: redis.Redis) -> JobStore:
    return JobStore(redis_client, "w1")


async def test_enqueue_returns_how_many_jobs_stand_before(async_redis: redis.asyncio.Redis) -> None:
    assert [await put(async_redis, name) for name in ("a", "b", "c")] == [0, 1, 2]
    state = await queueing.job_state(async_redis, "c")
    assert state is not None and (state.status, state.position) == ("queued", 2)
    assert [await async_redis.llen(keys.queue(name)) for name in QUEUES] == [0, 3, 0]


async def test_rq_reads_the_job_back_and_never_the_prompt(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis
) -> None:
    await put(async_redis, "a", max_attempts=3)
    job = Job.fetch("a", connection=redis_client, serializer=RestrictedSerializer)
    assert (job.func_name, job.args, job.kwargs) == ("worker.jobs.generate", (), {})
    assert (job.origin, job.get_status(), job.get_position()) == (QUEUE, "queued", 0)
    assert (job.timeout, job.ttl, job.result_ttl, job.failure_ttl) == (60, 160, 100, 200)
    assert job.retries_left == 2
    assert PROMPT not in f"{job.description} {job.get_call_string()} {job.meta}"
    with pytest.raises(RuntimeError, match="dfastllm worker"):
        job.perform()


async def test_a_second_job_of_the_same_id_is_refused(async_redis: redis.asyncio.Redis) -> None:
    await put(async_redis, "a")
    with pytest.raises(queueing.DuplicateJobError):
        await put(async_redis, make_job("a", api_id="another"))
    assert await async_redis.llen(keys.queue(QUEUE)) == 1


async def test_the_same_enqueue_sent_twice_counts_once(async_redis: redis.asyncio.Redis) -> None:
    job = make_job("a")
    assert await put(async_redis, "first") == 0
    assert [await put(async_redis, job), await put(async_redis, job)] == [1, 1]
    assert await async_redis.llen(keys.queue(QUEUE)) == 2


async def test_a_full_queue_refuses_and_says_when_to_come_back(
    async_redis: redis.asyncio.Redis, store: JobStore
) -> None:
    await put(async_redis, "done")
    store.claim(QUEUES, 1)
    store.emit(StepRecord([], [delta("done", 0)], [finished("done")]))
    for number in range(20):
        await put(async_redis, f"j{number}")
    with pytest.raises(queueing.QueueFullError) as caught:
        await put(async_redis, "late", max_queue_size=20)
    # One job ended in the last 10 s; a tenth of the queue is two jobs.
    assert (caught.value.queue_length, caught.value.retry_after_s) == (20, 20)
    assert await queueing.job_state(async_redis, "late") is None


async def test_at_the_memory_limit_new_jobs_are_refused_and_running_ones_go_on(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore
) -> None:
    for name in ("a", "b", "c"):
        await put(async_redis, name)
    redis_client.config_set("maxmemory", 1)
    try:
        with pytest.raises(queueing.StoreFullError):
            await put(async_redis, "refused")
        assert [claim.job.job_id for claim in store.claim(QUEUES, 2)] == ["a", "b"]
        assert not store.beat(["a", "b"], INFO).lost
        assert not store.emit(StepRecord([], [delta("a", 0)], [finished("a")]))
        store.release(["b"])
        assert store.reap(QUEUES) == ([], [])
        assert await queueing.cancel(async_redis, "c")
    finally:
        redis_client.config_set("maxmemory", 0)
    state = await queueing.job_state(async_redis, "a")
    assert state is not None and state.status == "finished"


async def test_a_cancelled_job_leaves_its_queue_and_whoever_waits_is_told(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore
) -> None:
    channel = redis_client.pubsub(ignore_subscribe_messages=True)
    channel.subscribe(keys.reply_channel("api1"))
    channel.get_message(timeout=1)
    await put(async_redis, "a")
    assert await queueing.cancel(async_redis, "a")
    assert store.claim(QUEUES, 1) == []
    message = channel.get_message(timeout=1)
    assert message is not None
    (event,) = codec.decode_frame(message["data"]).events
    assert isinstance(event, Failed) and (event.job_id, event.code) == ("a", "cancelled")
    state = await queueing.job_state(async_redis, "a")
    assert state is not None and (state.status, state.ending) == ("canceled", event)
    assert not await queueing.cancel(async_redis, "a")
    channel.close()


async def test_cancelling_a_running_job_sends_its_worker_rqs_own_command(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore
) -> None:
    await put(async_redis, "a")
    store.claim(QUEUES, 1)
    channel = redis_client.pubsub(ignore_subscribe_messages=True)
    channel.subscribe("rq:pubsub:w1")
    channel.get_message(timeout=1)
    assert await queueing.cancel(async_redis, "a")
    message = channel.get_message(timeout=1)
    assert message is not None
    assert msgspec.json.decode(message["data"]) == {"command": "stop-job", "job_id": "a"}
    channel.close()


async def test_nothing_is_cancelled_where_there_is_nothing(
    async_redis: redis.asyncio.Redis,
) -> None:
    assert not await queueing.cancel(async_redis, "never-seen")
    assert await queueing.job_state(async_redis, "never-seen") is None


async def test_the_log_is_read_from_any_index(
    async_redis: redis.asyncio.Redis, store: JobStore
) -> None:
    await put(async_redis, "a")
    store.claim(QUEUES, 1)
    store.emit(StepRecord(deltas=[delta("a", 0), delta("a", 1), delta("a", 2)]))
    store.emit(StepRecord(deltas=[delta("a", 3)]))
    for start in range(5):
        indices = [d.index for d in await queueing.read_log(async_redis, "a", start)]
        assert indices == list(range(start, 4))


async def test_the_state_tells_the_workers_answer_and_the_ending(
    async_redis: redis.asyncio.Redis, store: JobStore
) -> None:
    await put(async_redis, "a")
    store.claim(QUEUES, 1)
    store.emit(StepRecord(answers=[Accepted("a", 3)]))
    state = await queueing.job_state(async_redis, "a")
    assert state == ("started", None, Accepted("a", 3), None, None)
    ending = finished("a")
    store.emit(StepRecord(deltas=[delta("a", 0)], endings=[ending]))
    state = await queueing.job_state(async_redis, "a")
    assert state == ("finished", None, Accepted("a", 3), ending.event, None)


async def test_a_model_stays_known_when_its_last_worker_is_gone(
    async_redis: redis.asyncio.Redis, store: JobStore
) -> None:
    store.beat([], INFO)
    assert await queueing.live_workers(async_redis) == [INFO]
    store.reap_worker("w1")
    assert await queueing.live_workers(async_redis) == []
    (known,) = await queueing.known_models(async_redis)
    assert known.info == INFO.model
    assert 0 < await async_redis.ttl(f"dfl:model:{MODEL}") <= 86400


async def test_a_model_is_what_its_live_workers_offer_together(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis
) -> None:
    small = ModelInfo(MODEL, 1024, ["ar", "apd"], 2, "other")
    leaving = ModelInfo(MODEL, 512, ["semi_ar"], 3, "third")
    for number, info in enumerate((INFO.model, small, leaving)):
        name = f"w{number}"
        JobStore(redis_client, name).beat(
            [], WorkerInfo(name, info, 8, is_draining=info is leaving)
        )
    (known,) = await queueing.known_models(async_redis)
    assert (known.info.modes, known.info.max_model_len) == (["ar", "deer", "apd"], 1024)
    assert known.silent_s == 0
    JobStore(redis_client, "w0").reap_worker("w0")
    (known,) = await queueing.known_models(async_redis)
    assert (known.info.modes, known.silent_s) == (["ar", "apd"], 0)
    JobStore(redis_client, "w1").reap_worker("w1")
    (known,) = await queueing.known_models(async_redis)
    assert known.info.modes == ["ar", "apd"]
    assert 0 < known.silent_s < 60


async def test_enqueueing_wakes_the_workers_of_that_queue(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis
) -> None:
    channel = redis_client.pubsub(ignore_subscribe_messages=True)
    channel.subscribe(keys.wake_channel(QUEUE))
    channel.get_message(timeout=1)
    await put(async_redis, "a")
    assert channel.get_message(timeout=1) is not None
    channel.close()


async def test_scripts_and_jobs_outlive_a_restart_of_the_server(own_valkey: Valkey) -> None:
    async with own_valkey.connect_async() as client:
        await put(client, "a")
        with own_valkey.connect() as connection:
            store = JobStore(connection, "w1")
            assert len(store.claim(QUEUES, 1)) == 1
            store.emit(StepRecord(deltas=[delta("a", 0)]))
            own_valkey.kill()
            own_valkey.start()
            assert not store.beat(["a"], INFO).lost
            assert not store.emit(StepRecord(deltas=[delta("a", 1)], endings=[finished("a", 2)]))
        assert [d.index for d in await queueing.read_log(client, "a")] == [0, 1]
        assert await put(client, "b") == 0
