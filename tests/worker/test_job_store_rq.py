"""RQ's own API, `rq info` and the real rq-dashboard tell the truth about our jobs."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
import redis
import redis.asyncio
from rq import Queue, SimpleWorker, Worker
from rq.command import send_stop_execution_command
from rq.job import Job, JobStatus
from rq.registry import StartedJobRegistry

from tests.valkey import Valkey
from tests.wire.samples import INFO, PROMPT, QUEUE, QUEUES, delta, failed, finished, put, stopped
from worker.held_job import StepRecord
from worker.job_store import JobStore
from worker.serializer import RestrictedSerializer
from worker.wire import queueing

pytestmark = pytest.mark.anyio

BIN = Path(sys.executable).parent


@pytest.fixture
def store(redis_client: redis.Redis) -> JobStore:
    """A worker's store; the worker is registered with RQ as `w1`."""
    queues = [_queue(redis_client, name) for name in QUEUES]
    worker = SimpleWorker(
        queues, name="w1", connection=redis_client, serializer=RestrictedSerializer
    )
    worker.register_birth()
    return JobStore(redis_client, "w1")


def _queue(client: redis.Redis, name: str = QUEUE) -> Queue:
    return Queue(name, connection=client, serializer=RestrictedSerializer)


def _fetch(client: redis.Redis, job_id: str) -> Job:
    return Job.fetch(job_id, connection=client, serializer=RestrictedSerializer)


def _worker(client: redis.Redis) -> Any:
    (worker,) = Worker.all(connection=client, serializer=RestrictedSerializer)
    return worker


async def _one_of_each(client: redis.asyncio.Redis, store: JobStore) -> None:
    """Leave one job finished, failed, stopped, canceled, started and two queued."""
    for name in ("done", "broken", "halted", "dropped", "running", "next", "last"):
        await put(client, name)
    await queueing.cancel(client, "dropped")
    store.claim(QUEUES, 4)
    endings = [finished("done"), failed("broken"), stopped("halted")]
    store.emit(StepRecord(deltas=[delta("done", 0), delta("running", 0)], endings=endings))
    store.beat(["running"], INFO)


async def test_registries_hold_each_job_where_it_belongs(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore
) -> None:
    await _one_of_each(async_redis, store)
    queue = _queue(redis_client)
    assert queue in Queue.all(connection=redis_client, serializer=RestrictedSerializer)
    assert queue.get_job_ids() == ["next", "last"]
    assert queue.started_job_registry.get_job_ids() == ["running"]
    assert queue.finished_job_registry.get_job_ids() == ["done"]
    assert sorted(queue.failed_job_registry.get_job_ids()) == ["broken", "halted"]
    assert queue.canceled_job_registry.get_job_ids() == ["dropped"]
    assert queue.count == 2


async def test_a_running_job_is_fully_described(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore
) -> None:
    await put(async_redis, "a")
    before = time.time()
    (claim,) = store.claim(QUEUES, 1)
    job = _fetch(redis_client, "a")
    assert (job.get_status(), job.worker_name) == (JobStatus.STARTED, "w1")
    assert job.started_at is not None and abs(job.started_at.timestamp() - before) < 5
    (execution,) = job.get_executions()
    assert (execution.id, execution.worker_name) == (claim.execution_id, "w1")
    registry = StartedJobRegistry(QUEUE, connection=redis_client)
    assert registry.get_job_and_execution_ids() == [("a", claim.execution_id)]
    beat_before = execution.last_heartbeat
    store.beat(["a"], INFO)
    execution.refresh()
    assert execution.last_heartbeat > beat_before
    send_stop_execution_command(redis_client, "a", claim.execution_id)  # finds its worker


async def test_the_worker_is_busy_with_what_it_runs_and_then_idle(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore
) -> None:
    for name in ("a", "b", "c"):
        await put(async_redis, name)
    store.claim(QUEUES, 3)
    worker = _worker(redis_client)
    assert (worker.get_state(), worker.current_execution_count) == ("busy", 3)
    assert {e.job_id for e in worker.get_current_executions()} == {"a", "b", "c"}
    assert worker.get_current_job().id in {"a", "b", "c"}
    store.emit(StepRecord(endings=[finished("a"), failed("b")]))
    assert _worker(redis_client).get_state() == "busy"
    store.emit(StepRecord(endings=[finished("c")]))
    worker = _worker(redis_client)
    assert (worker.get_state(), worker.current_execution_count) == ("idle", 0)
    assert (worker.successful_job_count, worker.failed_job_count) == (2, 1)
    assert worker.total_working_time > 0


async def test_results_are_rqs_results(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore
) -> None:
    await put(async_redis, "good")
    await put(async_redis, "bad")
    good, _ = store.claim(QUEUES, 2)
    store.emit(StepRecord(endings=[finished("good", result=b"an answer"), failed("bad")]))
    job = _fetch(redis_client, "good")
    assert (job.get_status(), job.return_value()) == (JobStatus.FINISHED, "an answer")
    result = job.latest_result()
    assert result is not None
    assert (result.type, result.worker_name) == (result.Type.SUCCESSFUL, "w1")
    assert result.execution_id == good.execution_id
    assert job.ended_at is not None and job.started_at is not None
    assert job.ended_at >= job.started_at
    failure = _fetch(redis_client, "bad").latest_result()
    assert failure is not None
    assert (failure.type, failure.exc_string) == (failure.Type.FAILED, "EngineError: broke")


async def test_a_beat_keeps_the_worker_listed_and_says_when_rq_has_forgotten_it(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore
) -> None:
    before = _worker(redis_client).last_heartbeat
    assert store.beat([], INFO).registered
    assert _worker(redis_client).last_heartbeat > before
    assert 30 < redis_client.ttl("rq:worker:w1") <= 90
    redis_client.delete("rq:worker:w1")
    assert not store.beat([], INFO).registered
    assert not redis_client.exists("rq:worker:w1")  # half a hash would be worse than none


async def test_dead_workers_leave_rqs_lists(redis_client: redis.Redis, store: JobStore) -> None:
    queue = _queue(redis_client)
    assert Worker.count(queue=queue) == Worker.count(connection=redis_client) == 1
    redis_client.delete("rq:worker:w1")  # its TTL has run out
    JobStore(redis_client, "w2").reap(QUEUES)
    assert Worker.count(queue=queue) == Worker.count(connection=redis_client) == 0


async def test_reaping_a_dead_child_takes_it_off_rqs_lists(
    redis_client: redis.Redis, store: JobStore
) -> None:
    JobStore(redis_client, "supervisor").reap_worker("w1")
    assert Worker.all(connection=redis_client) == []
    assert Worker.count(queue=_queue(redis_client)) == 0


async def test_what_an_operator_requeues_runs_again_and_continues_however_late(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore
) -> None:
    await put(async_redis, "a", max_attempts=1)
    store.claim(QUEUES, 1)
    redis_client.hset("rq:job:a", "dfl_deadline", 1)  # its time in the queue is long over
    store.emit(StepRecord(deltas=[delta("a", 0)], endings=[failed("a")]))
    _fetch(redis_client, "a").requeue()
    (claim,) = store.claim(QUEUES, 1)
    assert claim.deltas == [delta("a", 0)]
    state = await queueing.job_state(async_redis, "a")
    assert state is not None and (state.status, state.ending) == ("started", None)
    assert not store.emit(StepRecord(deltas=[delta("a", 1)], endings=[finished("a", 2)]))
    assert _fetch(redis_client, "a").get_status() == JobStatus.FINISHED


async def test_registries_forget_what_has_expired(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis, store: JobStore
) -> None:
    await _one_of_each(async_redis, store)
    names = [f"rq:{name}:{QUEUE}" for name in ("finished", "failed", "canceled")]
    for name in names:
        for job_id in redis_client.zrange(name, 0, -1):
            redis_client.zadd(name, {job_id: 1})
    store.reap(QUEUES)
    assert [redis_client.zcard(name) for name in names] == [0, 0, 0]


async def test_rq_info_tells_the_truth(
    async_redis: redis.asyncio.Redis, valkey: Valkey, store: JobStore
) -> None:
    await _one_of_each(async_redis, store)
    command = [str(BIN / "rq"), "info", "-u", valkey.url]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    (queue,) = [line for line in shown.splitlines() if line.startswith(QUEUE)]
    assert "2, 1 executing, 1 finished, 2 failed" in queue
    (worker,) = [line for line in shown.splitlines() if line.startswith("w1")]
    assert "busy" in worker


async def test_rq_dashboard_tells_the_truth(
    async_redis: redis.asyncio.Redis, valkey: Valkey, store: JobStore
) -> None:
    await _one_of_each(async_redis, store)
    with dashboard(valkey.url) as get:
        (queue,) = msgspec.json.decode(get("/0/data/queues.json"))["queues"]
        counts = {name: queue[f"{name}_job_registry_count"] for name in _EXPECTED}
        assert (queue["name"], queue["count"], counts) == (QUEUE, 2, _EXPECTED)
        (worker,) = msgspec.json.decode(get("/0/data/workers.json"))["workers"]
        assert (worker["name"], worker["state"]) == ("w1", "busy")
        assert worker["current_job"]["job_id"] == "running"
        assert (worker["successful_job_count"], worker["failed_job_count"]) == (1, 2)
        pages = [get("/"), get("/0/view/workers"), get("/0/view/jobs")]
        for registry in ("queued", *_EXPECTED):
            pages.append(get(f"/0/view/jobs/{quote(QUEUE)}/{registry}/8/asc/1"))
            listed = get(f"/0/data/jobs/{quote(QUEUE)}/{registry}/8/asc/1.json")
            expected = 2 if registry == "queued" else _EXPECTED[registry]
            assert len(msgspec.json.decode(listed)["jobs"]) == expected
            pages.append(listed)
        for name in ("done", "broken", "halted", "dropped", "running", "next"):
            pages += [get(f"/0/view/job/{name}"), get(f"/0/data/job/{name}.json")]
    assert not any(PROMPT.encode() in page for page in pages)


_EXPECTED = {"started": 1, "finished": 1, "failed": 2, "canceled": 1, "deferred": 0, "scheduled": 0}


@contextmanager
def dashboard(redis_url: str) -> Iterator[Any]:
    """Run the real rq-dashboard; yields a function that gets a page, or posts to it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [str(BIN / "rq-dashboard"), "-b", "127.0.0.1", "-p", str(port), "-u", redis_url]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def get(path: str, data: bytes | None = None) -> bytes:
        url = f"http://127.0.0.1:{port}{path}"
        with urllib.request.urlopen(url, data, timeout=20) as response:
            return bytes(response.read())

    try:
        _wait_for(process, get)
        yield get
    finally:
        process.terminate()
        process.wait(timeout=20)


def _wait_for(process: subprocess.Popen[bytes], get: Any) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            get("/favicon.ico")
            return
        except (urllib.error.URLError, ConnectionError):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
