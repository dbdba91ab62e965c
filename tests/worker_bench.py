"""For tests of the worker: processes to start and kill, jobs to put, streams to gather."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis

from tests.fakes import FakeEngine
from tests.valkey import Valkey
from worker.child_process import start_child
from worker.job_store import Claim
from worker.running_job import RunningJob
from worker.wire import codec, keys, queueing
from worker.wire.messages import (
    Accepted,
    Delta,
    Event,
    Failed,
    Finished,
    GenerateJob,
    Prompts,
    Rejected,
    Sampling,
)

MODEL = "fake"
API_ID = "test-api"
QUEUE = keys.queue_name(MODEL)
WAIT_S = 20.0


def make_job(job_id: str, **changes: Any) -> GenerateJob:
    """Return a streamed completion of 40 tokens; `changes` replaces fields of job or sampling."""
    of_sampling = set(Sampling.__struct_fields__) & changes.keys()
    own = {name: changes.pop(name) for name in of_sampling}
    sampling = Sampling(**{"seed": 7, "max_tokens": 40, **own})
    fields: dict[str, Any] = {
        "job_id": job_id,
        "api_id": API_ID,
        "model": MODEL,
        "tenant": "tenant",
        "created": time.time(),
        "input": Prompts([f"prompt of {job_id}"]),
        "stream": True,
    }
    return GenerateJob(**{**fields, "sampling": sampling, **changes})


def put(server: Valkey, *jobs: GenerateJob, max_attempts: int = 3, max_running: int = 0) -> None:
    async def enqueue_all() -> None:
        async with server.connect_async() as client:
            for job in jobs:
                await queueing.enqueue(
                    client,
                    job,
                    queue=QUEUE,
                    timeout_s=60,
                    result_ttl_s=100,
                    max_queue_size=1000,
                    max_attempts=max_attempts,
                    max_running=max_running,
                )

    asyncio.run(enqueue_all())


def undisturbed_texts(job: GenerateJob) -> dict[int, str]:
    """Return each choice's text as one engine alone makes it."""
    engine = FakeEngine(max_batch_size=64)
    run = RunningJob(Claim(job, "alone", QUEUE, 1, []), engine)
    for sequence in run.sequences:
        engine.add(sequence)
    deltas: list[Delta] = []
    while engine.has_work:
        deltas += [delta for output in engine.step() for delta in run.take([output])]
    return texts_of(deltas)


def texts_of(deltas: list[Delta]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for delta in deltas:
        texts[delta.choice] = texts.get(delta.choice, "") + delta.text
    return texts


class Listener:
    """What an API process hears: one channel, all of its jobs."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self.events: dict[str, list[Event]] = {}
        self.frames: list[list[Event]] = []
        self._pubsub = client.pubsub(ignore_subscribe_messages=True)
        self._pubsub.subscribe(keys.reply_channel(API_ID))

    def close(self) -> None:
        self._pubsub.close()

    def wait_until(self, is_enough: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not is_enough():
            assert time.monotonic() < deadline, f"waited in vain until {what}: {self.summary()}"
            self._listen()

    def wait_for_endings(self, *job_ids: str) -> None:
        self.wait_until(lambda: all(map(self.ending, job_ids)), f"{job_ids} end")

    def wait_for_deltas(self, count: int, *job_ids: str) -> None:
        def has_enough(job_id: str) -> bool:
            return len(self.deltas(job_id)) >= count

        self.wait_until(lambda: all(map(has_enough, job_ids)), f"{job_ids} speak")

    def wait_until_logged(self, client: redis.Redis, *job_ids: str) -> None:
        """Wait for endings by asking for them, and take the log for what was heard."""

        def has_ended(job_id: str) -> bool:
            return client.hget(keys.job(job_id), "dfl_ending") is not None

        self.wait_until(lambda: all(map(has_ended, job_ids)), f"{job_ids} end")
        for job_id in job_ids:
            ending = codec.decode_event(client.hget(keys.job(job_id), "dfl_ending"))
            self.events[job_id] = [*logged_deltas(client, job_id), ending]

    def deltas(self, job_id: str) -> list[Delta]:
        return [event for event in self.events.get(job_id, []) if isinstance(event, Delta)]

    def answers(self, job_id: str) -> list[Accepted]:
        return [event for event in self.events.get(job_id, []) if isinstance(event, Accepted)]

    def ending(self, job_id: str) -> Finished | Failed | Rejected | None:
        for event in self.events.get(job_id, []):
            if isinstance(event, Finished | Failed | Rejected):
                return event
        return None

    def summary(self) -> dict[str, tuple[int, object]]:
        return {name: (len(self.deltas(name)), self.ending(name)) for name in self.events}

    def _listen(self) -> None:
        try:
            message = self._pubsub.get_message(timeout=0.1)
        except redis.RedisError:
            time.sleep(0.05)  # the server is down, as some tests want it
            return
        if message is not None:
            self.frames.append(codec.decode_frame(message["data"]).events)
            for event in self.frames[-1]:
                self.events.setdefault(event.job_id, []).append(event)


@contextmanager
def listening(client: redis.Redis) -> Iterator[Listener]:
    listener = Listener(client)
    try:
        yield listener
    finally:
        listener.close()


def assert_complete(listener: Listener, client: redis.Redis, job: GenerateJob) -> Finished:
    """Check that a stream is whole, in order, logged alike and what one engine alone says."""
    deltas = listener.deltas(job.job_id)
    ending = listener.ending(job.job_id)
    assert isinstance(ending, Finished), ending
    assert [delta.index for delta in deltas] == list(range(ending.num_deltas))
    assert texts_of(deltas) == undisturbed_texts(job)
    assert logged_deltas(client, job.job_id) == deltas
    assert status_of(client, job.job_id) == "finished"
    return ending


def logged_deltas(client: redis.Redis, job_id: str) -> list[Delta]:
    return codec.deltas_of(client.xrange(keys.log(job_id)))


def status_of(client: redis.Redis, job_id: str) -> str:
    return str(client.hget(keys.job(job_id), "status").decode())


def retries_left(client: redis.Redis, job_id: str) -> int:
    return int(client.hget(keys.job(job_id), "retries_left"))


@contextmanager
def running_worker(
    server: Valkey, name: str, **options: float | str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker process with the fake engine; whatever happens, it is gone afterwards."""
    options_of_all = {"redis_url": server.url, "name": name}
    flags = [
        f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}")
        for key, value in (options_of_all | options).items()
    ]
    process = start_child(
        [sys.executable, "-m", "tests.fake_worker", *flags],
        death_signal=signal.SIGKILL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_model(client: redis.Redis) -> None:
    """Wait for the first beat of a worker: from then on the API knows its model."""
    deadline = time.monotonic() + WAIT_S
    while not client.exists(f"{keys.DFL_PREFIX}:models"):
        assert time.monotonic() < deadline, "no worker offers a model"
        time.sleep(0.02)


def wait_for_worker(client: redis.Redis, *names: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while any(not client.exists(keys.worker(name)) for name in names):
        assert time.monotonic() < deadline, f"{names} do not come up"
        time.sleep(0.02)
