"""A worker without an engine: the test says, step by step, what it does with its job."""

from __future__ import annotations

import time
from collections.abc import Callable

import redis

from tests.api.fakes import MODEL
from tests.valkey import Valkey
from worker.held_job import Ending, StepRecord
from worker.job_store import Claim, JobStore
from worker.wire import codec, keys
from worker.wire.messages import (
    Accepted,
    Delta,
    Finished,
    LogEntry,
    Rejected,
    Usage,
    WorkerInfo,
)

WAIT_S = 10.0


class ScriptedWorker:
    """Speaks for one job at a time, in pieces of one letter."""

    def __init__(self, server: Valkey) -> None:
        self.redis: redis.Redis = server.connect()
        self._store = JobStore(self.redis, "scripted")
        self._job_id = ""
        self._index = 0
        self.beat()

    @property
    def job_id(self) -> str:
        return self._job_id

    def beat(self) -> set[str]:
        """Show a heartbeat; return the jobs that are to be stopped."""
        held = [self._job_id] if self._job_id else []
        return self._store.beat(held, WorkerInfo("scripted", MODEL, 4)).cancelled

    def claim(self) -> Claim:
        claims: list[Claim] = []

        def has_claimed() -> bool:
            claims.extend(self._store.claim(keys.queue_names(MODEL.name), 1))
            return bool(claims)

        wait_until(has_claimed, "there is a job to claim")
        self._job_id, self._index = claims[0].job.job_id, 0
        return claims[0]

    def accept(self) -> None:
        self._store.emit(StepRecord(answers=[Accepted(self._job_id, 5)]))

    def refuse(self) -> None:
        event = Rejected(self._job_id, 400, "too long", "messages", "context_length_exceeded")
        self._store.emit(StepRecord(endings=[Ending(self._job_id, "failed", event)]))

    def say(self, text: str) -> None:
        for letter in text:
            self._store.emit(StepRecord(deltas=[self._next_delta(letter)]))

    def say_unheard(self, letter: str) -> None:
        """Log a delta as a step does, but lose the message about it."""
        delta = self._next_delta(letter)
        entry = codec.encode(LogEntry([delta]))
        self.redis.xadd(keys.log(self._job_id), {"d": entry}, id=f"{delta.index + 1}-0")

    def finish(self) -> None:
        self._store.emit(StepRecord(endings=[Ending(self._job_id, "finished", self._finished())]))

    def finish_unheard(self) -> None:
        """Leave what a finish leaves in the job's hash, but lose the message about it."""
        ending = codec.encode(self._finished())
        fields = {"status": "finished", "dfl_ending": ending}
        self.redis.hset(keys.job(self._job_id), mapping=fields)

    def _next_delta(self, text: str) -> Delta:
        delta = Delta(self._job_id, self._index, 0, [self._index], text)
        self._index += 1
        return delta

    def _finished(self) -> Finished:
        return Finished(self._job_id, self._index, Usage(5, self._index, 0))


def wait_until(is_true: Callable[[], bool], what: str, limit_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not is_true():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.005)
