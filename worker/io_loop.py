"""The worker's main loop: all of its talk with Redis, around an engine that never waits for it."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from redis.exceptions import RedisError

from worker.batch_worker import BatchWorker
from worker.engine_port import EnginePort
from worker.job_runner import JobRunner
from worker.job_store import Claim, JobStore
from worker.mailbox import Mailbox
from worker.question_desk import QuestionDesk
from worker.rhythm import Rhythm
from worker.run_spans import RunSpans
from worker.worker_info import info_of

log = logging.getLogger("worker")

POLL_S = 1.0  # a wake can get lost; no job waits longer than this for it
RETRY_S = 0.25  # while Redis is away
REAP_PAUSE_S = 2.0  # after an outage: all leases are old, and their holders first renew them
ADMIT_SLICE_S = 0.005  # a round trip for each admitted job would cost more than the job's wait
SLICE = 64  # sequences in a record, at most: a round trip costs as much as ten of them
MAX_SLICES = 16
LAST_WORDS_S = 3.0  # how long a stopping worker tries to tell Redis what it leaves behind
EXIT_ENGINE_BROKEN = 70


@dataclass(frozen=True, slots=True)
class LoopLimits:
    """How long this worker waits, and how much it keeps."""

    drain_s: float = 20.0
    beat_s: float = 5.0  # a sixth of the lease: it outlives a pause or two
    outage_buffer_bytes: int = 64 << 20
    stream_interval_s: float = 0.0  # between two sendings of what is not urgent
    is_burst: bool = False  # end once nothing waits or runs


class IoLoop:
    """Claims jobs into free places, sends what the engine makes of them, keeps their leases."""

    def __init__(
        self,
        engine: EnginePort,
        store: JobStore,
        worker: BatchWorker,
        mailbox: Mailbox,
        limits: LoopLimits,
        desk: QuestionDesk,
        spans: RunSpans | None = None,
    ) -> None:
        self._engine = engine
        self._store = store
        self._worker = worker
        self._mailbox = mailbox
        self._limits = limits
        self._desk = desk
        self._queues: Sequence[str] = worker.queue_names()
        self._rhythm = Rhythm(limits.stream_interval_s, mailbox.ring)
        self._runner = JobRunner(engine, self._rhythm.heard, spans)
        self._has_sent = False  # in this turn
        self._created = int(time.time())
        self._claims: deque[Claim] = deque()  # taken, not yet started
        self._poll_at = 0.0
        self._beat_at = 0.0
        self._retry_at = 0.0
        self._reap_at = 0.0
        self._drain_until = float("inf")
        self._outage_began: float | None = None
        self._last_trouble = ""
        self._fault: str | None = None  # the kind of an engine fault whose jobs we still hold
        self._is_suspended = False
        self._has_left = False

    def run(self) -> int:
        """Work until asked to stop or the engine breaks; return the process's exit code."""
        self._runner.start()
        while not self._has_left:
            self._mailbox.wait(self._patience_s())
            self._rhythm.hold()
            self._turn()
            self._rest()
        is_broken = not self._runner.is_alive
        self._runner.stop(timeout_s=1.0)
        return EXIT_ENGINE_BROKEN if is_broken else 0

    @property
    def _is_draining(self) -> bool:
        return self._drain_until < float("inf")

    @property
    def _may_claim(self) -> bool:
        has_place = self._runner.num_free_places > 0
        # Asked once more, for the call to stop may have come while this turn was talking to Redis.
        is_stopping = self._is_draining or self._mailbox.num_stop_calls > 0
        return has_place and not self._is_suspended and not is_stopping

    def _patience_s(self) -> float:
        """How long nothing needs doing, unless the bell rings."""
        now = time.monotonic()
        if self._outage_began is not None:
            return self._retry_at - now
        late_in_s = self._runner.jobs.next_deadline - now
        poll_at = self._poll_at if self._may_claim else float("inf")
        next_at = min(self._beat_at, poll_at, self._drain_until, self._rhythm.next_look)
        return max(0.0, min(POLL_S, next_at - now, late_in_s))

    def _turn(self) -> None:
        """Do all that can be done now; what Redis refuses is tried again at a later turn."""
        may_be_more = self._absorb_outputs(SLICE)
        self._runner.cancel(self._mailbox.take_jobs_to_stop(), "stopped")
        self._runner.stop_late_jobs()
        self._note_stop_calls()
        if time.monotonic() >= self._retry_at:
            self._try_to_talk(may_be_more)
        else:
            self._absorb_outputs()  # kept, and counted, until Redis is back
        self._runner.pause(self._runner.publisher.num_bytes > self._limits.outage_buffer_bytes)
        if time.monotonic() > self._drain_until + LAST_WORDS_S:
            log.warning(
                "Redis is away: %d jobs wait for their lease to end", len(self._runner.jobs)
            )
            self._has_left = True

    def _rest(self) -> None:
        """After a sending let output gather; without one, look out for it."""
        now = time.monotonic()
        if self._has_sent and self._runner.jobs.num_live_sequences:
            self._rhythm.rest(now)
        self._has_sent = False
        if self._rhythm.listen(now) and self._runner.has_output:
            self._mailbox.ring()

    def _absorb_outputs(self, limit: int | None = None) -> bool:
        """Absorb the outputs of up to `limit` sequences; say whether there are more."""
        absorbed = self._runner.absorb_outputs(limit)
        for fault in absorbed.faults:
            self._fault = fault.message
        if not self._runner.is_alive and not self._is_draining:
            log.error("the engine has stopped; this worker ends")
            self._fault = self._fault or "EngineStopped"
            self._drain_until = time.monotonic()
        return absorbed.may_be_more

    def _note_stop_calls(self) -> None:
        now = time.monotonic()
        if self._mailbox.num_stop_calls == 1 and not self._is_draining:
            log.info("stopping; %d jobs may finish first", len(self._runner.jobs))
            self._drain_until = now + self._limits.drain_s
            self._beat_at = now  # others are to know at once
        if self._mailbox.num_stop_calls > 1:
            self._drain_until = min(self._drain_until, now)

    def _try_to_talk(self, may_be_more: bool) -> None:
        try:
            self._send()
            if may_be_more:
                self._send_slices()
            self._talk_to_redis()
        except RedisError as error:
            self._retry_at = time.monotonic() + RETRY_S
            self._poll_at = 0.0
            if self._outage_began is None:
                self._outage_began = time.monotonic()
            if str(error) != self._last_trouble:  # it comes again every fraction of a second
                self._last_trouble = str(error)
                log.warning("trouble with Redis, output is kept: %s", error)
        else:
            if self._outage_began is not None:
                log.info("Redis is back after %.1f s", time.monotonic() - self._outage_began)
                self._reap_at = time.monotonic() + REAP_PAUSE_S
            self._outage_began = None
            self._last_trouble = ""

    def _talk_to_redis(self) -> None:
        self._admit()
        if self._fault is not None:
            self._give_back_after_fault(self._fault)
        if time.monotonic() >= self._beat_at:
            self._beat()
        if self._mailbox.take_question() and self._desk.answer_all():
            self._mailbox.ask()
        if self._is_draining:
            self._drain()
        elif self._may_claim:
            self._claim()
            self._admit()

    def _send(self) -> None:
        """Send everything collected, a record at a time, and let go of what has ended."""
        publisher = self._runner.publisher
        while (record := publisher.record_to_send()) is not None:
            lost = self._store.emit(record)
            self._has_sent = True
            ended = [ending.job_id for ending in publisher.arrived()]
            self._runner.jobs.remove(ended)
            self._drop(lost.difference(ended))

    def _send_slices(self) -> None:
        """Send the rest of a large step bit by bit: meanwhile the API hands on what it has got."""
        for _ in range(MAX_SLICES):
            may_be_more = self._absorb_outputs(SLICE)
            self._send()
            if not may_be_more:
                return
        self._mailbox.ring()

    def _drop(self, lost: set[str]) -> None:
        if lost:
            log.warning("%d jobs are no longer ours: dropped", len(lost))
            self._runner.drop(lost)

    def _beat(self) -> None:
        info = info_of(self._engine, self._worker.name, self._created, self._is_draining)
        beat = self._store.beat(self._runner.jobs.job_ids, info)
        self._beat_at = time.monotonic() + self._limits.beat_s
        if not beat.registered:
            self._worker.register_again()
        if self._is_draining:
            self._worker.show_draining()
        self._drop(beat.lost)
        self._runner.cancel(beat.cancelled, "canceled")
        if self._outage_began is None and time.monotonic() >= self._reap_at:
            self._store.reap(self._queues)
        self._is_suspended = self._worker.is_suspended()
        self._send()

    def _claim(self) -> None:
        """Fill the free places, if there is a reason to think that a job waits."""
        # Taken before the look at the queues: a wake during it is for the next look.
        if not self._mailbox.take_wake() and time.monotonic() < self._poll_at:
            return
        num_free = self._runner.num_free_places
        self._claims.extend(self._store.claim(self._queues, num_free))
        self._poll_at = time.monotonic() + POLL_S
        if len(self._claims) == num_free:
            self._mailbox.wake()
        elif self._limits.is_burst and not self._claims and self._is_all_done():
            log.info("nothing waits any more; ending")
            self._drain_until = time.monotonic()

    def _is_all_done(self) -> bool:
        return len(self._runner.jobs) == 0 and self._worker.are_queues_empty()

    def _admit(self) -> None:
        """Start what was claimed; long prompts hold up nobody's output for more than a moment."""
        if not self._claims:
            return
        sent_at = time.monotonic()
        while self._claims:
            self._runner.admit(self._claims.popleft())
            if time.monotonic() - sent_at > ADMIT_SLICE_S:
                self._absorb_outputs()
                self._send()
                sent_at = time.monotonic()
        self._absorb_outputs()
        self._send()

    def _drain(self) -> None:
        if time.monotonic() >= self._drain_until:
            self._absorb_outputs()
            self._runner.halt()
            self._send()
            job_ids = self._runner.jobs.job_ids
            if job_ids:
                log.info("giving %d jobs back to their queues", len(job_ids))
                self._store.release(job_ids)
                self._runner.drop(job_ids)
        if len(self._runner.jobs) == 0 and self._runner.publisher.is_empty:
            self._has_left = True

    def _give_back_after_fault(self, kind: str) -> None:
        """Spend an attempt of every job here, or end it if that was the last; may run again."""
        self._absorb_outputs()  # what has come before the fault
        live = self._runner.jobs.live_jobs
        doomed = self._worker.out_of_attempts([job.job_id for job in live])
        for job in live:
            if job.job_id in doomed:
                self._runner.fail_for_engine(job, kind)
        self._runner.halt("engine_error")
        self._send()
        job_ids = self._runner.jobs.job_ids
        # To the queue, a worker that lost its batch is a worker that died and came back.
        self._store.reap_worker(self._worker.name)
        self._worker.register_again()
        self._store.release(job_ids)  # gone already; this makes the store forget them as well
        self._runner.drop(job_ids)
        self._fault = None
        self._beat_at = 0.0
        self._mailbox.wake()
