"""The main loop in this very process, so that what it does can be counted."""

from __future__ import annotations

import threading
import time

import pytest
import redis
from rq.suspension import resume, suspend

from tests.fakes import FakeEngine
from tests.valkey import Valkey
from tests.worker_bench import assert_complete, listening, make_job, put, status_of
from worker.batch_worker import BatchWorker
from worker.held_job import StepRecord
from worker.io_loop import SLICE, IoLoop, LoopLimits
from worker.job_store import JobStore
from worker.mailbox import Mailbox
from worker.question_desk import QuestionDesk
from worker.wire import keys
from worker.wire.messages import Delta

WAIT_S = 20.0


class CountingMailbox(Mailbox):
    num_waits = 0

    def wait(self, timeout_s: float) -> None:
        self.num_waits += 1
        super().wait(timeout_s)


class RunningLoop:
    """A loop on a thread of its own, which the product has in its main thread."""

    def __init__(self, server: Valkey, engine: FakeEngine, limits: LoopLimits) -> None:
        self.mailbox = CountingMailbox()
        queues = keys.queue_names(engine.model_name)
        self._worker = BatchWorker(
            queues, server.connect(), name="w1", mailbox=self.mailbox, question_channel="asked"
        )
        store = JobStore(server.connect(), "w1")
        desk = QuestionDesk(server.connect(), engine, "w1")
        loop = IoLoop(engine, store, self._worker, self.mailbox, limits, desk)
        self._thread = threading.Thread(target=loop.run)

    def __enter__(self) -> RunningLoop:
        self._worker.begin()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.mailbox.request_stop()
        self.mailbox.request_stop()
        self._thread.join(WAIT_S)
        self._worker.end()
        assert not self._thread.is_alive()


def wait_for_status(client: redis.Redis, job_id: str, status: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while status_of(client, job_id) != status:
        assert time.monotonic() < deadline, status_of(client, job_id)
        time.sleep(0.01)


def test_a_full_worker_with_a_long_queue_sleeps_between_steps(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    engine = FakeEngine(step_s=0.25, max_batch_size=1)
    put(valkey, *(make_job(f"job-{number}", max_tokens=100) for number in range(3)))
    with RunningLoop(valkey, engine, LoopLimits()) as loop:
        wait_for_status(redis_client, "job-0", "started")
        before = loop.mailbox.num_waits
        time.sleep(1.5)
        # A turn for each step, and one or two for beat and poll.
        assert loop.mailbox.num_waits - before < 15
    assert status_of(redis_client, "job-1") == "queued"


def test_rq_suspend_keeps_jobs_in_the_queue_until_rq_resume(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    suspend(redis_client)
    with RunningLoop(valkey, FakeEngine(), LoopLimits(beat_s=0.1)) as loop:
        put(valkey, make_job("job", max_tokens=2))
        time.sleep(0.5)
        assert status_of(redis_client, "job") == "queued"
        assert loop.mailbox.num_waits < 30
        resume(redis_client)
        wait_for_status(redis_client, "job", "finished")


def test_a_worker_that_rq_has_forgotten_registers_again(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    with RunningLoop(valkey, FakeEngine(), LoopLimits(beat_s=0.1)):
        redis_client.delete(keys.worker("w1"))
        deadline = time.monotonic() + WAIT_S
        while not redis_client.hexists(keys.worker("w1"), "birth"):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_large_step_goes_out_in_slices_and_whole(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    jobs = [make_job(f"job-{number}", max_tokens=3) for number in range(2 * SLICE + 10)]
    put(valkey, *jobs)
    engine = FakeEngine(max_batch_size=len(jobs), step_s=0.05)
    with (
        listening(redis_client) as listener,
        RunningLoop(valkey, engine, LoopLimits()),
    ):
        listener.wait_for_endings(*(job.job_id for job in jobs))
    for job in jobs:
        assert_complete(listener, redis_client, job)
    sizes = [sum(isinstance(event, Delta) for event in frame) for frame in listener.frames]
    assert max(sizes) == SLICE


def test_what_is_between_first_and_last_word_is_gathered(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    job = make_job("job", max_tokens=100)
    with (
        listening(redis_client) as listener,
        RunningLoop(valkey, FakeEngine(step_s=0.001), LoopLimits(stream_interval_s=60.0)),
    ):
        put(valkey, job)
        listener.wait_for_endings("job")
    assert_complete(listener, redis_client, job)
    sizes = [len(delta.token_ids) for delta in listener.deltas("job")]
    # The first word and the last have waited for nothing; a turn or two had other reasons.
    assert 2 <= len(sizes) <= 5, sizes
    assert sizes[0] < 50


def test_a_gathered_stream_goes_on_when_a_neighbour_speaks_for_the_first_time(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    with (
        listening(redis_client) as listener,
        RunningLoop(valkey, FakeEngine(step_s=0.001), LoopLimits(stream_interval_s=60.0)),
    ):
        put(valkey, make_job("long", max_tokens=3000))
        listener.wait_for_deltas(1, "long")
        put(valkey, make_job("short", max_tokens=1))
        listener.wait_for_endings("short")
        assert listener.ending("long") is None
    assert all(delta.token_ids for delta in listener.deltas("long"))


def test_each_step_is_sent_where_nothing_is_to_be_gathered(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    job = make_job("job", max_tokens=20)
    with (
        listening(redis_client) as listener,
        RunningLoop(valkey, FakeEngine(step_s=0.05), LoopLimits(stream_interval_s=0.0)),
    ):
        put(valkey, job)
        listener.wait_for_endings("job")
    assert_complete(listener, redis_client, job)
    assert len(listener.deltas("job")) > 15


def test_a_large_step_is_kept_while_redis_is_away(
    valkey: Valkey, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [make_job(f"job-{number}", max_tokens=4) for number in range(2 * SLICE + 10)]
    put(valkey, *jobs)
    engine = FakeEngine(max_batch_size=len(jobs), step_s=0.05)
    is_away = threading.Event()
    emit = JobStore.emit

    def refuse(store: JobStore, step: StepRecord) -> set[str]:
        if is_away.is_set():
            raise redis.ConnectionError("away")
        return emit(store, step)

    monkeypatch.setattr(JobStore, "emit", refuse)
    with (
        listening(redis_client) as listener,
        RunningLoop(valkey, engine, LoopLimits()),
    ):
        listener.wait_for_deltas(1, jobs[0].job_id)
        is_away.set()
        deadline = time.monotonic() + WAIT_S
        while engine.has_work:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        is_away.clear()
        listener.wait_for_endings(*(job.job_id for job in jobs))
    for job in jobs:
        assert_complete(listener, redis_client, job)
