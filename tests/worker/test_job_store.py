"""The worker's side of the queue when all goes well, against a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
import redis.asyncio

from tests.valkey import Valkey
from tests.wire.samples import (
    INFO,
    QUEUE,
    QUEUES,
    delta,
    failed,
    finished,
    make_job,
    put,
    stopped,
)
from worker.held_job import LOG_EVERY, Ending, StepRecord
from worker.job_store import JobStore
from worker.wire import codec, keys, queueing
from worker.wire.messages import Accepted, Event, Rejected

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(redis_client: redis.Redis) -> JobStore:
    return JobStore(redis_client, "w1")


class Listener:
    """Hears what is published for API process `api1`."""

    def __init__(self, client: redis.Redis) -> None:
        self.channel = client.pubsub(ignore_subscribe_messages=True)
        self.channel.subscribe(keys.reply_channel("api1"))
        self.channel.get_message(timeout=1)

    def frames(self) -> list[list[Event]]:
        frames = []
        while message := self.channel.get_message(timeout=0.05):
            frames.append(codec.decode_frame(message["data"]).events)
        return frames


@pytest.fixture
def listener(redis_client: redis.Redis) -> Iterator[Listener]:
    listener = Listener(redis_client)
    yield listener
    listener.channel.close()


def names(claims: list) -> list[str]:  # type: ignore[type-arg]
    return [claim.job.job_id for claim in claims]


async def test_urgent_queues_are_claimed_first_and_each_in_order(
    async_redis: redis.asyncio.Redis, store: JobStore
) -> None:
    for name, queue in zip("abcdef", [2, 1, 0, 1, 0, 2], strict=True):
        await put(async_redis, name, queue=QUEUES[queue])
    assert names(store.claim(QUEUES, 4)) == ["c", "e", "b", "d"]
    assert names(store.claim(QUEUES, 4)) == ["a", "f"]
    assert store.claim(QUEUES, 4) == []


async def test_a_claim_brings_the_request_as_it_was_sent(
    async_redis: redis.asyncio.Redis, store: JobStore
) -> None:
    job = make_job("a")
    await put(async_redis, job)
    (claim,) = store.claim(QUEUES, 1)
    assert (claim.job, claim.queue, claim.attempt, claim.deltas) == (job, QUEUE, 1, [])


async def test_a_step_is_one_frame_an_api_process(
    async_redis: redis.asyncio.Redis, store: JobStore, listener: Listener
) -> None:
    await put(async_redis, "a")
    await put(async_redis, "b")
    await put(async_redis, make_job("other", api_id="api2"))
    store.claim(QUEUES, 3)
    ending = finished("a", 1)
    deltas = [delta("a", 0, "stop"), delta("b", 0), delta("other", 0)]
    store.emit(StepRecord([Accepted("a", 3)], deltas, [ending]))
    (events,) = listener.frames()
    assert events == [Accepted("a", 3), deltas[0], ending.event, deltas[1]]


async def test_what_is_published_is_in_the_log_already(
    async_redis: redis.asyncio.Redis, valkey: Valkey, store: JobStore
) -> None:
    await put(async_redis, "a")
    store.claim(QUEUES, 1)
    with valkey.connect() as client, client.monitor() as monitor:
        store.emit(StepRecord(deltas=[delta("a", 0)]))
        commands = iter(monitor.listen())
        inner = [next(commands)["command"].split()[0] for _ in range(7)]
    assert inner.index("XADD") < inner.index("PUBLISH")


async def test_the_answer_of_a_job_that_nobody_streams_goes_with_its_first_words(
    async_redis: redis.asyncio.Redis, store: JobStore, listener: Listener
) -> None:
    await put(async_redis, make_job("whole", stream=False))
    await put(async_redis, make_job("streamed", stream=True))
    store.claim(QUEUES, 2)
    store.emit(StepRecord([Accepted("whole", 3), Accepted("streamed", 4)]))
    assert listener.frames() == [[Accepted("streamed", 4)]]
    ending = finished("whole", 1)
    store.emit(StepRecord(deltas=[delta("whole", 0)], endings=[ending]))
    assert listener.frames() == [[Accepted("whole", 3), delta("whole", 0), ending.event]]
    state = await queueing.job_state(async_redis, "whole")
    assert state is not None
    assert state.accepted == Accepted("whole", 3)


async def test_jobs_nobody_streams_are_written_a_few_deltas_at_a_time_and_completely(
    async_redis: redis.asyncio.Redis, store: JobStore, listener: Listener
) -> None:
    await put(async_redis, make_job("a", stream=False))
    store.claim(QUEUES, 1)
    count = LOG_EVERY + 2
    for index in range(count):
        store.emit(StepRecord(deltas=[delta("a", index)]))
    assert len(await queueing.read_log(async_redis, "a")) == LOG_EVERY
    store.emit(StepRecord(endings=[finished("a", count)]))
    assert [d.index for d in await queueing.read_log(async_redis, "a")] == list(range(count))
    assert [len(events) for events in listener.frames()] == [LOG_EVERY, 3]


@pytest.mark.parametrize(
    ("ending", "status"),
    [(finished("a"), "finished"), (failed("a"), "failed"), (stopped("a"), "stopped")],
)
async def test_every_key_of_an_ended_job_will_go_away(
    async_redis: redis.asyncio.Redis,
    redis_client: redis.Redis,
    store: JobStore,
    ending: Ending,
    status: str,
) -> None:
    await put(async_redis, "a")
    await _assert_all_keys_expire(redis_client)
    store.claim(QUEUES, 1)
    await _assert_all_keys_expire(redis_client)
    store.emit(StepRecord([Accepted("a", 1)], [delta("a", 0)]))
    store.beat(["a"], INFO)
    await _assert_all_keys_expire(redis_client)
    store.emit(StepRecord(endings=[ending]))
    left = await _assert_all_keys_expire(redis_client)
    assert left == {"rq:job:a", "dfl:log:a", "rq:results:a"}
    state = await queueing.job_state(async_redis, "a")
    assert state is not None and (state.status, state.ending) == (status, ending.event)


async def _assert_all_keys_expire(client: redis.Redis) -> set[str]:
    found = {key.decode() for key in client.scan_iter() if b"a" in key.split(b":")}
    assert found
    assert {key for key in found if client.ttl(key) < 0} == set()
    return found


async def test_a_rejected_request_fails_and_the_client_hears_why(
    async_redis: redis.asyncio.Redis, store: JobStore, listener: Listener
) -> None:
    await put(async_redis, "a")
    store.claim(QUEUES, 1)
    event = Rejected("a", 400, "too long", "messages")
    store.emit(StepRecord(endings=[Ending("a", "failed", event, exc_info="too long")]))
    assert listener.frames() == [[event]]
    state = await queueing.job_state(async_redis, "a")
    assert state is not None and (state.status, state.ending) == ("failed", event)


async def test_a_job_whose_time_ran_out_in_the_queue_fails_and_the_client_hears_it(
    async_redis: redis.asyncio.Redis, store: JobStore, listener: Listener
) -> None:
    await put(async_redis, "late", timeout_s=-1)
    await put(async_redis, "good")
    assert names(store.claim(QUEUES, 2)) == ["good"]
    state = await queueing.job_state(async_redis, "late")
    assert state is not None and state.status == "failed"
    assert listener.frames() == [[state.ending]]


async def test_a_release_puts_jobs_back_in_front_in_order_and_spends_no_attempt(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore
) -> None:
    for name in ("a", "b", "c"):
        await put(async_redis, name)
    store.claim(QUEUES, 2)
    store.emit(StepRecord(deltas=[delta("a", 0), delta("a", 1)]))
    store.release(["a", "b"])
    claims = JobStore(redis_client, "w2").claim(QUEUES, 3)
    assert names(claims) == ["a", "b", "c"]
    assert [claim.attempt for claim in claims] == [2, 2, 1]
    assert [d.index for d in claims[0].deltas] == [0, 1]
    assert redis_client.hget("rq:job:a", "retries_left") == b"1"


async def test_a_step_without_news_asks_nothing_of_redis(store: JobStore, valkey: Valkey) -> None:
    with valkey.connect() as client:
        client.config_resetstat()
        assert store.emit(StepRecord()) == set()
        assert "cmdstat_evalsha" not in client.info("commandstats")


async def test_a_job_costs_less_than_a_tenth_of_a_round_trip_at_batch_64(
    async_redis: redis.asyncio.Redis, valkey: Valkey, redis_client: redis.Redis, store: JobStore
) -> None:
    """Claims, beats and endings; a step's output costs one round trip for all its jobs together."""
    num_jobs = 256
    for number in range(num_jobs):
        await put(async_redis, f"j{number}")
    store.claim(QUEUES, 0)  # the scripts are loaded once, not once a job
    store.beat([], INFO)
    redis_client.info("commandstats")
    with valkey.connect() as client:
        before = _calls_from_outside(client)
        while claims := store.claim(QUEUES, 64):
            ids = names(claims)
            store.beat(ids, INFO)
            deltas = [delta(name, 0, "stop") for name in ids]
            store.emit(
                StepRecord([Accepted(i, 1) for i in ids], deltas, [finished(i) for i in ids])
            )
        assert 8 <= _calls_from_outside(client) - before <= 0.1 * num_jobs
    assert redis_client.llen(keys.queue(QUEUE)) == 0
    assert redis_client.zcard(f"rq:finished:{QUEUE}") == num_jobs


def _calls_from_outside(client: redis.Redis) -> int:
    """Count scripts, and the few commands that are only ever sent alone."""
    stats = client.info("commandstats")
    sent = ("evalsha", "eval", "xrange", "multi")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in sent)
