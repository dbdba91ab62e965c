"""Jobs through real worker processes and a real queue: what a client gets to hear."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest
import redis
from rq.command import send_stop_job_command
from rq.job import Job

from tests.fakes import POISON
from tests.valkey import Valkey
from tests.worker_bench import (
    Listener,
    assert_complete,
    listening,
    make_job,
    put,
    retries_left,
    running_worker,
    status_of,
    texts_of,
    wait_for_worker,
)
from worker.serializer import RestrictedSerializer
from worker.wire import keys
from worker.wire.messages import (
    Chat,
    ChatMessage,
    Failed,
    Prompts,
    Rejected,
    Usage,
)


@pytest.fixture
def listener(redis_client: redis.Redis) -> Iterator[Listener]:
    with listening(redis_client) as listener:
        yield listener


def test_eight_jobs_run_at_once(
    valkey: Valkey, redis_client: redis.Redis, listener: Listener
) -> None:
    jobs = [make_job(f"job-{number}") for number in range(8)]
    with running_worker(valkey, "w1", step_s=0.01):
        wait_for_worker(redis_client, "w1")
        put(valkey, *jobs)
        listener.wait_until(lambda: len(listener.events) == 8, "all have begun")
        # One after the other, the first would have ended before the last begins.
        assert not any(listener.ending(job.job_id) for job in jobs)
        listener.wait_for_endings(*(job.job_id for job in jobs))
    for job in jobs:
        assert_complete(listener, redis_client, job)


def test_the_end_says_how_long_the_job_waited_read_and_wrote(
    valkey: Valkey, redis_client: redis.Redis, listener: Listener
) -> None:
    job = make_job("j1", max_tokens=4)
    put(valkey, job)
    put_at = time.time()
    with running_worker(valkey, "w1", step_s=0.1):
        wait_for_worker(redis_client, "w1")
        listener.wait_for_endings("j1")
        whole = time.time() - job.created
    timing = assert_complete(listener, redis_client, job).timing
    assert timing is not None
    # No step is shorter than its sleep: one until the first token, three to the last.
    assert timing.prefill_s > 0.09 and timing.decode_s > 0.27
    assert 0 < put_at - job.created < timing.queue_s
    assert timing.queue_s + timing.prefill_s + timing.decode_s < whole


def test_a_freed_place_is_filled_without_waiting_for_the_next_poll(
    valkey: Valkey, redis_client: redis.Redis, listener: Listener
) -> None:
    jobs = [make_job(f"job-{number}", max_tokens=4) for number in range(12)]
    put(valkey, *jobs)
    with running_worker(valkey, "w1", step_s=0.005, max_batch_size=1):
        wait_for_worker(redis_client, "w1")
        started = time.monotonic()
        listener.wait_for_endings(*(job.job_id for job in jobs))
        # Twelve polls would take as many seconds.
        assert time.monotonic() - started < 4.0


def test_an_idle_worker_hears_of_a_job_by_its_wake(
    valkey: Valkey,
    redis_client: redis.Redis,
    listener: Listener,
    capfd: pytest.CaptureFixture[str],
) -> None:
    latencies_ms = []
    with running_worker(valkey, "w1"):
        wait_for_worker(redis_client, "w1")
        for number in range(9):
            job = make_job(f"job-{number}", max_tokens=1)
            put(valkey, job)
            listener.wait_for_endings(job.job_id)
            latencies_ms.append((time.time() - job.created) * 1000)
    median = sorted(latencies_ms)[4]
    with capfd.disabled():
        sys.stdout.write(f"\n[from putting a job to its end, worker idle: {median:.0f} ms] ")
    # Right after the last look at the queues, so a poll would come a second later.
    assert median < 700


def test_every_prompt_and_choice_has_its_own_text(
    valkey: Valkey, redis_client: redis.Redis, listener: Listener
) -> None:
    job = make_job("many", input=Prompts(["first", [104, 105]], echo=True), n=2, max_tokens=5)
    with running_worker(valkey, "w1"):
        put(valkey, job)
        listener.wait_for_endings("many")
    ending = assert_complete(listener, redis_client, job)
    texts = texts_of(listener.deltas("many"))
    assert [texts[choice][:-5] for choice in range(4)] == ["first", "first", "hi", "hi"]
    assert len(set(texts.values())) == 4
    assert ending.usage == Usage(num_prompt_tokens=7, num_output_tokens=20, num_cached_tokens=2)


def test_a_job_that_nobody_streams_is_told_in_fewer_deltas(
    valkey: Valkey, redis_client: redis.Redis, listener: Listener
) -> None:
    job = make_job("whole", stream=False)
    with running_worker(valkey, "w1"):
        put(valkey, job)
        listener.wait_for_endings("whole")
    ending = assert_complete(listener, redis_client, job)
    assert ending.num_deltas <= 5


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"max_tokens": 5000}, "prompt", "context_length_exceeded"),
        ({"temperature": -1.0}, "temperature", "invalid_value"),
    ],
)
def test_a_wrong_request_is_rejected_before_anything_runs(
    valkey: Valkey,
    redis_client: redis.Redis,
    listener: Listener,
    changes: dict[str, object],
    param: str,
    code: str,
) -> None:
    with running_worker(valkey, "w1"):
        put(valkey, make_job("wrong", **changes))
        listener.wait_for_endings("wrong")
    rejected = listener.ending("wrong")
    assert isinstance(rejected, Rejected)
    assert (rejected.status, rejected.param, rejected.code) == (400, param, code)
    assert listener.deltas("wrong") == listener.answers("wrong") == []
    assert status_of(redis_client, "wrong") == "failed"


def test_stop_job_stops_exactly_that_job(
    valkey: Valkey, redis_client: redis.Redis, listener: Listener
) -> None:
    jobs = [make_job("stop-me"), make_job("neighbour")]
    with running_worker(valkey, "w1", step_s=0.02):
        put(valkey, *jobs)
        listener.wait_for_deltas(2, "stop-me", "neighbour")
        send_stop_job_command(redis_client, "stop-me", serializer=RestrictedSerializer)
        listener.wait_for_endings("stop-me", "neighbour")
    ending = listener.ending("stop-me")
    assert isinstance(ending, Failed)
    assert ending.code == "cancelled"
    assert status_of(redis_client, "stop-me") == "stopped"
    assert len(listener.deltas("stop-me")) < 40
    assert_complete(listener, redis_client, jobs[1])


def test_a_job_cancelled_by_rq_leaves_its_place_to_the_next(
    valkey: Valkey, redis_client: redis.Redis, listener: Listener
) -> None:
    following = make_job("following", max_tokens=5)
    with running_worker(valkey, "w1", step_s=0.02, max_batch_size=1):
        put(valkey, make_job("cancel-me", max_tokens=4000), following)
        listener.wait_for_deltas(1, "cancel-me")
        Job.fetch("cancel-me", redis_client, serializer=RestrictedSerializer).cancel()
        listener.wait_for_endings("following")
    assert status_of(redis_client, "cancel-me") == "canceled"
    assert_complete(listener, redis_client, following)


def test_a_job_past_its_time_fails_alone(
    valkey: Valkey, redis_client: redis.Redis, listener: Listener
) -> None:
    neighbour = make_job("neighbour", max_tokens=60)
    with running_worker(valkey, "w1", step_s=0.01):
        wait_for_worker(redis_client, "w1")
        put(valkey, make_job("late", timeout_s=0.3, max_tokens=2000), neighbour)
        listener.wait_for_endings("late", "neighbour")
    ending = listener.ending("late")
    assert isinstance(ending, Failed)
    assert (ending.status, ending.code) == (504, "timeout")
    assert_complete(listener, redis_client, neighbour)


def test_an_engine_fault_spends_attempts_and_then_fails_the_job_but_not_the_worker(
    valkey: Valkey, redis_client: redis.Redis, listener: Listener
) -> None:
    after = make_job("after")
    with running_worker(valkey, "w1"):
        put(valkey, make_job("poison", input=Prompts([POISON])), max_attempts=2)
        listener.wait_for_endings("poison")
        put(valkey, after)
        listener.wait_for_endings("after")
    ending = listener.ending("poison")
    assert isinstance(ending, Failed)
    assert (ending.status, ending.code) == (500, "engine_error")
    assert len(listener.answers("poison")) == 2
    assert retries_left(redis_client, "poison") == 0
    assert_complete(listener, redis_client, after)


def test_a_chat_is_rendered_by_the_worker(
    valkey: Valkey, redis_client: redis.Redis, listener: Listener
) -> None:
    job = make_job("chat", input=Chat([ChatMessage("user", "hello")]))
    with running_worker(valkey, "w1"):
        put(valkey, job)
        listener.wait_for_endings("chat")
    ending = assert_complete(listener, redis_client, job)
    assert ending.usage.num_prompt_tokens == len("<user>hello\n<assistant>")


def test_rq_sees_a_worker_while_it_lives_and_none_afterwards(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    with running_worker(valkey, "w1") as process:
        wait_for_worker(redis_client, "w1")
        assert redis_client.smembers("rq:workers") == {keys.worker("w1").encode()}
        process.terminate()
        assert process.wait(10) == 0
    assert redis_client.smembers("rq:workers") == set()
