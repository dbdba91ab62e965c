"""How long a request may wait for a worker, and what it hears of that."""

from __future__ import annotations

import time

import httpx
import pytest
import redis.asyncio
from rq.registry import FailedJobRegistry

from tests.api.scripted_worker import ScriptedWorker
from tests.jobs.servers import CHAT, api_server, chat, job, look, submit, wait_for_status
from tests.valkey import Valkey
from tests.wire.samples import INFO, QUEUE, QUEUES, finished, put
from worker.held_job import StepRecord
from worker.job_store import JobStore
from worker.serializer import RestrictedSerializer
from worker.wire import codec, keys, queueing


def test_a_job_that_no_worker_takes_in_time_is_failed_and_says_so(
    api: httpx.Client, worker: ScriptedWorker
) -> None:
    made = submit(api, job(chat(max_queue_time=0.1)))
    patient = submit(api, job())
    expired = wait_for_status(api, made["id"], "expired")
    assert expired["response"]["status_code"] == 504
    assert expired["response"]["body"]["error"]["code"] == "queue_timeout"
    registry = FailedJobRegistry(
        "tiny.default", connection=worker.redis, serializer=RestrictedSerializer
    )
    assert registry.get_job_ids() == [made["id"]]
    assert (
        "max_queue_time"
        in registry.job_class.fetch(
            made["id"], connection=worker.redis, serializer=RestrictedSerializer
        )
        .latest_result()
        .exc_string
    )
    assert worker.claim().job.job_id == patient["id"]


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_direct_request_that_waits_too_long_gets_504(
    api: httpx.Client, worker: ScriptedWorker, is_stream: bool
) -> None:
    response = api.post(CHAT, json=chat(max_queue_time=0.2, stream=is_stream))
    if is_stream:
        assert ": queued, position 0" in response.text  # the status line has left already
        assert '"code":"queue_timeout"' in response.text
    else:
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "queue_timeout"


def test_what_has_started_in_time_may_take_its_time(
    api: httpx.Client, worker: ScriptedWorker
) -> None:
    made = submit(api, job(chat(max_queue_time=0.15)))
    worker.claim()
    worker.accept()
    time.sleep(0.3)
    worker.say("hello")
    worker.finish()
    assert look(api, made["id"])["status"] == "finished"


def test_the_servers_limit_holds_where_the_request_names_none(
    valkey: Valkey, worker: ScriptedWorker
) -> None:
    with api_server(valkey, max_queue_time=0.1) as api:
        assert api.post(CHAT, json=chat()).status_code == 504
        patient = submit(api, job(chat(max_queue_time=100)))
        time.sleep(0.3)
        assert look(api, patient["id"])["status"] == "queued"


def test_a_job_that_comes_back_from_a_dead_worker_keeps_its_deadline(
    valkey: Valkey, worker: ScriptedWorker
) -> None:
    with api_server(valkey, job_timeout=1.0) as api:
        made = submit(api, job(chat(max_queue_time=0.1)))
        worker.claim()
        time.sleep(0.3)  # the limit of its wait is looked at, and does not concern it
        JobStore(worker.redis, "supervisor").reap_worker("scripted")
        assert look(api, made["id"])["status"] == "queued"
        # Another worker never comes.
        assert wait_for_status(api, made["id"], "expired")["attempts"] == 1
        assert not worker.redis.exists("dfl:waiting")


def test_a_position_counts_all_that_are_claimed_before(
    api: httpx.Client, worker: ScriptedWorker
) -> None:
    made = {}
    for priority in ("batch", "default", "interactive", "batch", "default"):
        body = submit(api, job(chat(priority=priority)))
        made[body["id"]] = body["position"]
    assert list(made.values()) == [0, 0, 0, 4 - 1, 2]
    positions = {job_id: look(api, job_id)["position"] for job_id in made}
    order = [worker.claim().job.job_id for _ in made]
    assert [positions[job_id] for job_id in order] == [0, 1, 2, 3, 4]


def _register(client: redis.Redis, name: str, num_places: int) -> None:
    """Show a worker as its beats and RQ do."""
    info = INFO.__class__(name, INFO.model, num_places)
    client.sadd(f"rq:workers:{QUEUE}", f"rq:worker:{name}")
    client.set(f"dfl:worker:{name}", codec.encode(info), ex=30)


async def _wait_s(client: redis.asyncio.Redis, job_id: str) -> float | None:
    state = await queueing.job_state(client, job_id)
    assert state is not None
    return state.wait_s


@pytest.mark.anyio
async def test_the_start_is_estimated_by_what_the_workers_finish(
    async_redis: redis.asyncio.Redis, worker: ScriptedWorker
) -> None:
    store = JobStore(worker.redis, "w1", result_ttl_s=100)
    for number in range(30):
        await put(async_redis, f"j{number}")
    assert await _wait_s(async_redis, "j29") is None  # no worker is known
    _register(worker.redis, "w1", 4)
    assert await _wait_s(async_redis, "j3") == 0  # there is a place for it
    assert await _wait_s(async_redis, "j29") is None  # nothing tells how fast they are
    for _ in range(5):
        claims = store.claim(QUEUES, 4)
        store.emit(StepRecord(endings=[finished(claim.job.job_id, 0) for claim in claims]))
    store.claim(QUEUES, 4)
    # 20 in the last 10 s: two a second; before j29 are five, and then it is its turn.
    assert await _wait_s(async_redis, "j29") == pytest.approx(6 / 2)
    assert await _wait_s(async_redis, "j24") == pytest.approx(1 / 2)
    _register(worker.redis, "w2", 3)
    assert await _wait_s(async_redis, "j26") == 0
    assert await _wait_s(async_redis, "j29") == pytest.approx(3 / 2)
    # Of a job that has waited half a minute, these are the finishes of half a minute.
    worker.redis.hincrbyfloat("rq:job:j29", "dfl_deadline", -20)
    assert await _wait_s(async_redis, "j29") == pytest.approx(3 / (20 / 20), rel=0.05)


def test_the_estimate_is_told(api: httpx.Client, worker: ScriptedWorker) -> None:
    queue = keys.queue_name("tiny")
    worker.redis.sadd(f"rq:workers:{queue}", "rq:worker:scripted")  # it has four places
    made = submit(api, job())
    assert made["estimated_start_at"] == pytest.approx(time.time(), abs=30)
    with api.stream("POST", CHAT, json=chat(stream=True)) as waiting:
        comments = (line for line in waiting.iter_lines() if line.startswith(": queued"))
        assert next(comments) == ": queued, position 1"  # nobody has looked yet
        assert any(line == ": queued, position 1, estimated start in 0 s" for line in comments)
