"""What goes wrong: workers die, freeze and are stopped, the queue goes away; streams stay whole."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
import redis

from tests.fakes import POISON
from tests.valkey import Valkey
from tests.worker_bench import (
    QUEUE,
    Listener,
    assert_complete,
    listening,
    make_job,
    put,
    retries_left,
    running_worker,
    status_of,
    wait_for_worker,
)
from worker.io_loop import EXIT_ENGINE_BROKEN
from worker.job_store import JobStore
from worker.wire import keys
from worker.wire.messages import Prompts


@pytest.fixture
def listener(redis_client: redis.Redis) -> Iterator[Listener]:
    with listening(redis_client) as listener:
        yield listener


def test_after_a_kill_another_worker_goes_on_where_each_stream_stopped(
    valkey: Valkey, redis_client: redis.Redis, listener: Listener
) -> None:
    jobs = [make_job(f"job-{number}", n=2, max_tokens=60) for number in range(3)]
    jobs.append(make_job("echo", input=Prompts(["say it again"], echo=True), logprobs=1))
    names = [job.job_id for job in jobs]
    with running_worker(valkey, "w1", step_s=0.02) as first:
        put(valkey, *jobs)
        listener.wait_for_deltas(5, *names)
        first.kill()
        first.wait()
        JobStore(redis_client, "w1").reap_worker("w1")
        with running_worker(valkey, "w2", step_s=0.01):
            listener.wait_for_endings(*names)
    for job in jobs:
        assert_complete(listener, redis_client, job)
        assert listener.ending(job.job_id).attempt == 2  # type: ignore[union-attr]
        assert retries_left(redis_client, job.job_id) == 1
    # The prompt was echoed, and its logprobs sent, by the first worker alone.
    logprobs = [one for delta in listener.deltas("echo") for one in delta.logprobs or []]
    assert len(logprobs) == len("say it again") + 40


def test_a_dead_workers_lease_runs_out_by_itself(
    valkey: Valkey, redis_client: redis.Redis, listener: Listener
) -> None:
    job = make_job("job", max_tokens=60)
    with running_worker(valkey, "w1", step_s=0.02, lease=1.0) as first:
        put(valkey, job)
        listener.wait_for_deltas(5, "job")
        first.kill()
        with running_worker(valkey, "w2", step_s=0.001, lease=1.0):
            listener.wait_for_endings("job")
    assert assert_complete(listener, redis_client, job).attempt == 2


def test_a_worker_that_was_frozen_past_its_lease_says_nothing_more(
    valkey: Valkey, redis_client: redis.Redis, listener: Listener
) -> None:
    job = make_job("job", max_tokens=100)
    with running_worker(valkey, "w1", step_s=0.01) as frozen:
        put(valkey, job)
        listener.wait_for_deltas(5, "job")
        frozen.send_signal(signal.SIGSTOP)
        JobStore(redis_client, "w1").reap_worker("w1")
        with running_worker(valkey, "w2", step_s=0.02):
            listener.wait_until(lambda: len(listener.answers("job")) == 2, "w2 has taken over")
            frozen.send_signal(signal.SIGCONT)
            listener.wait_for_endings("job")
    assert assert_complete(listener, redis_client, job).attempt == 2


def test_sigterm_lets_jobs_finish_within_the_grace_time(
    valkey: Valkey, redis_client: redis.Redis, listener: Listener
) -> None:
    job = make_job("job")
    with running_worker(valkey, "w1", step_s=0.01) as process:
        put(valkey, job)
        listener.wait_for_deltas(2, "job")
        process.terminate()
        put(valkey, make_job("too-late"))
        assert process.wait(10) == 0
        listener.wait_for_endings("job")
    assert_complete(listener, redis_client, job)
    assert status_of(redis_client, "too-late") == "queued"


def test_sigterm_gives_the_rest_back_without_spending_a_retry(
    valkey: Valkey, redis_client: redis.Redis, listener: Listener
) -> None:
    jobs = [make_job("first", max_tokens=100), make_job("second", max_tokens=100, stream=False)]
    with running_worker(valkey, "w1", step_s=0.03, drain_timeout=0.2) as process:
        put(valkey, *jobs)
        listener.wait_for_deltas(1, "first", "second")
        process.terminate()
        assert process.wait(10) == 0
    assert [status_of(redis_client, job.job_id) for job in jobs] == ["queued", "queued"]
    assert redis_client.lrange(keys.queue(QUEUE), 0, -1) == [b"first", b"second"]
    with running_worker(valkey, "w2"):
        listener.wait_for_endings("first", "second")
    for job in jobs:
        assert_complete(listener, redis_client, job)
        assert retries_left(redis_client, job.job_id) == 2


def test_a_second_sigterm_ends_the_grace_time(valkey: Valkey, redis_client: redis.Redis) -> None:
    with running_worker(valkey, "w1", step_s=0.05, drain_timeout=60) as process:
        wait_for_worker(redis_client, "w1")
        put(valkey, make_job("job", max_tokens=2000))
        while status_of(redis_client, "job") != "started":
            time.sleep(0.01)
        process.terminate()
        time.sleep(0.2)  # two signals at once are one signal
        process.terminate()
        assert process.wait(5) == 0
    assert status_of(redis_client, "job") == "queued"


def test_a_restart_of_the_queue_in_mid_run_loses_nothing(own_valkey: Valkey) -> None:
    jobs = [make_job(f"job-{number}", max_tokens=150) for number in range(4)]
    names = [job.job_id for job in jobs]
    with (
        own_valkey.connect() as client,
        listening(client) as listener,
        running_worker(own_valkey, "w1", step_s=0.01),
    ):
        put(own_valkey, *jobs)
        listener.wait_for_deltas(5, *names)
        client.execute_command("WAITAOF", 1, 0, 2000)  # a crash may cost the last second
        own_valkey.kill()
        own_valkey.start()
        # What was published while nobody was there to hear it is in the log: as the API does.
        listener.wait_until_logged(client, *names)
        for job in jobs:
            assert_complete(listener, client, job)
            assert retries_left(client, job.job_id) == 2


def test_a_long_outage_stops_the_engine_instead_of_filling_the_memory(
    own_valkey: Valkey, capfd: pytest.CaptureFixture[str]
) -> None:
    # With logprobs, for mere tokens that are kept together weigh next to nothing.
    jobs = [make_job(f"job-{number}", max_tokens=900, logprobs=1) for number in range(8)]
    names = [job.job_id for job in jobs]
    with (
        own_valkey.connect() as client,
        listening(client) as listener,
        running_worker(own_valkey, "w1", step_s=0.001, outage_buffer_mb=1),
    ):
        put(own_valkey, *jobs)
        listener.wait_for_deltas(5, *names)
        client.execute_command("WAITAOF", 1, 0, 2000)
        own_valkey.kill()
        log = ""
        deadline = time.monotonic() + 20
        while "the engine waits" not in log:
            assert time.monotonic() < deadline, log
            log += capfd.readouterr().err
            time.sleep(0.02)
        own_valkey.start()
        listener.wait_until_logged(client, *names)
        for job in jobs:
            assert_complete(listener, client, job)


def test_an_engine_that_keeps_failing_ends_the_worker_and_gives_its_jobs_back(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    poison = [make_job(f"poison-{number}", input=Prompts([POISON])) for number in range(3)]
    with running_worker(valkey, "w1") as process:
        put(valkey, *poison, max_attempts=100)
        assert process.wait(20) == EXIT_ENGINE_BROKEN
    assert {status_of(redis_client, job.job_id) for job in poison} == {"queued"}
    assert all(retries_left(redis_client, job.job_id) < 99 for job in poison)
