"""A job that kills every worker that takes it, among jobs that do not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from rq.job import Job
from rq.registry import FailedJobRegistry

from tests.chaos.verdict import audit
from tests.fakes import LETHAL
from tests.stack import spawn
from tests.valkey import Valkey
from tests.worker_bench import (
    QUEUE,
    assert_complete,
    listening,
    make_job,
    put,
    retries_left,
    wait_for_worker,
)
from worker.job_store import JobStore
from worker.serializer import RestrictedSerializer
from worker.wire.messages import Failed, Prompts


@contextmanager
def _worker_that_is_started_again(server: Valkey) -> Iterator[list[int]]:
    """Do what `dfastllm serve` does with a worker that dies; yields its exit codes."""
    codes: list[int] = []
    is_over = threading.Event()

    def keep() -> None:
        while not is_over.is_set():
            name = f"w{len(codes)}"
            process = spawn(
                "tests.fake_worker", f"--redis-url={server.url}", f"--name={name}", "--step-s=0.005"
            )
            while process.poll() is None and not is_over.wait(0.02):
                pass
            process.kill()
            codes.append(process.wait())
            with server.connect() as client:
                JobStore(client, name).reap_worker(name)

    keeper = threading.Thread(target=keep)
    keeper.start()
    try:
        yield codes
    finally:
        is_over.set()
        keeper.join()


def test_a_poison_job_is_buried_with_its_reason_and_takes_nobody_along(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    innocent = [make_job(f"job-{number}", max_tokens=60) for number in range(5)]
    poison = make_job("poison", input=Prompts([LETHAL]))
    with listening(redis_client) as listener:
        with _worker_that_is_started_again(valkey) as exit_codes:
            wait_for_worker(redis_client, "w0")
            put(valkey, *innocent[:3], poison, *innocent[3:])
            listener.wait_for_endings("poison", *(job.job_id for job in innocent))
        assert exit_codes[:3] == [-9, -9, -9]
        for job in innocent:
            assert_complete(listener, redis_client, job)
        ending = listener.ending("poison")
    assert isinstance(ending, Failed) and ending.code == "worker_lost"
    registry = FailedJobRegistry(QUEUE, connection=redis_client, serializer=RestrictedSerializer)
    assert registry.get_job_ids() == ["poison"]
    result = Job.fetch("poison", redis_client, RestrictedSerializer).latest_result()
    assert result is not None and "the worker died, and no attempt is left" in result.exc_string
    assert retries_left(redis_client, "poison") == 0
    assert audit(redis_client) == []
