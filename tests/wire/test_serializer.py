"""Whoever can write to Redis must not be able to run code in a worker."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import redis
import redis.asyncio
from rq import Queue

from tests.wire.samples import QUEUE, QUEUES, put
from worker.job_store import JobStore
from worker.serializer import RestrictedSerializer
from worker.wire import queueing


class Bomb:
    """Its pickle creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_plain_data_goes_through_and_back() -> None:
    data = ("worker.jobs.generate", None, (), {"n": [1, 2.5, b"x", "y", True]})
    assert RestrictedSerializer.loads(RestrictedSerializer.dumps(data)) == data


def test_a_planted_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    poison = pickle.dumps(("f", None, (Bomb(trace),), {}))
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        RestrictedSerializer.loads(poison)
    assert not trace.exists()
    pickle.loads(poison)
    assert trace.exists()  # so the payload would have gone off


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(pickle.UnpicklingError):
        RestrictedSerializer.dumps(tmp_path)


@pytest.mark.anyio
async def test_a_job_planted_by_a_stock_client_fails_unread(
    redis_client: redis.Redis, async_redis: redis.asyncio.Redis, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    job = Queue(QUEUE, connection=redis_client).enqueue(Path.touch, Bomb(trace))
    await put(async_redis, "good")
    claims = JobStore(redis_client, "w1").claim(QUEUES, 8)
    assert [claim.job.job_id for claim in claims] == ["good"]
    assert not trace.exists()
    state = await queueing.job_state(async_redis, job.id)
    assert state is not None and state.status == "failed"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "payload", [b"", b"\xc1garbage", b"\x93\x01\x02\x03", b"\x81\xa1v\x63", pickle.dumps(Bomb)]
)
async def test_a_payload_that_is_no_request_fails_alone(
    redis_client: redis.Redis, async_redis: redis.asyncio.Redis, payload: bytes
) -> None:
    await put(async_redis, "bad")
    await put(async_redis, "good")
    redis_client.hset("rq:job:bad", "dfl", payload)
    claims = JobStore(redis_client, "w1").claim(QUEUES, 8)
    assert [claim.job.job_id for claim in claims] == ["good"]
    state = await queueing.job_state(async_redis, "bad")
    assert state is not None and state.status == "failed"


@pytest.mark.anyio
async def test_a_payload_cannot_speak_in_another_jobs_name(
    redis_client: redis.Redis, async_redis: redis.asyncio.Redis
) -> None:
    await put(async_redis, "mine")
    await put(async_redis, "thief")
    payload = redis_client.hget("rq:job:mine", "dfl")
    assert payload is not None
    redis_client.hset("rq:job:thief", "dfl", payload)
    claims = JobStore(redis_client, "w1").claim(QUEUES, 8)
    assert [claim.job.job_id for claim in claims] == ["mine"]
