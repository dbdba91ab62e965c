"""Runs claimed jobs on the engine thread and collects what they say; knows no Redis."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Literal, NamedTuple

from engine.request.errors import InvalidRequestError
from engine.request.outputs import FinishReason, StepOutput
from worker.engine_port import EnginePort
from worker.engine_thread import Abort, EngineFault, EngineThread
from worker.held_job import Ending
from worker.job_store import Claim
from worker.job_table import JobTable
from worker.publisher import Publisher
from worker.run_spans import RunSpans
from worker.running_job import RunningJob
from worker.translate import rejection
from worker.wire.messages import Failed, Finished, Rejected

log = logging.getLogger("worker")

# Longer than any compilation in a first step; a device that hangs does not come back.
STEP_LIMIT_S = 900.0


class Absorbed(NamedTuple):
    may_be_more: bool
    faults: list[EngineFault]


class JobRunner:
    """Between the queue and the engine: admits claims, absorbs outputs, ends jobs."""

    def __init__(
        self, engine: EnginePort, on_output: Callable[[bool], object], spans: RunSpans | None = None
    ) -> None:
        """`on_output`: see `EngineThread`. `spans`: where runs are traced."""
        self.jobs = JobTable()
        self.publisher = Publisher()
        self._engine = engine
        self._thread = EngineThread(engine, on_output)
        self._taken: dict[str, list[StepOutput]] = {}  # by sequence, until absorbed
        self._is_paused = False
        self._spans = spans

    @property
    def num_free_places(self) -> int:
        return max(0, self._engine.max_batch_size - self.jobs.num_live_sequences)

    @property
    def has_output(self) -> bool:
        """Whether there is something to absorb."""
        return bool(self._taken) or self._thread.has_output

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and self._thread.step_age_s < STEP_LIMIT_S

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Let the engine thread end after the step it is in, if that ends in time."""
        self._thread.stop()
        self._thread.join(timeout_s)

    def pause(self, is_paused: bool) -> None:
        if is_paused != self._is_paused:
            self._is_paused = is_paused
            log.warning(
                "the engine %s", "waits: too much output is kept" if is_paused else "goes on"
            )
            self._thread.pause(is_paused)

    def admit(self, claim: Claim) -> None:
        """Start a job, or end it at once where the request is wrong."""
        self.drop([claim.job.job_id])  # what is left of an earlier run whose lease we lost
        if self._spans is not None:
            self._spans.note_claim(claim.job, claim.attempt)
        try:
            job = RunningJob(claim, self._engine)
        except InvalidRequestError as error:
            event = rejection(claim.job.job_id, error)
            self._refuse(claim, event, f"rejected: {error.code}")
            return
        except Exception:  # boundary: one job; what its content breaks must not break the others
            log.exception("job %s cannot be translated", claim.job.job_id)
            words = "the request could not be prepared"
            self._refuse(claim, _failed(claim.job.job_id, 500, words, "engine_error"), words)
            return
        self.jobs.add(job)
        self.publisher.answer(job.accepted())
        self._thread.post(job.sequences)
        self._finish_if_complete(job)

    def absorb_outputs(self, limit: int | None = None) -> Absorbed:
        """Turn what the engine has done since the last call into deltas and endings.

        Of at most `limit` sequences, but of each all that it has gained in whatever many steps.
        """
        faults = self._take()
        for name in list(islice(self._taken, limit)):
            self._absorb(self._taken.pop(name))
        return Absorbed(self.has_output, faults)

    def _take(self) -> list[EngineFault]:
        faults = []
        for output in self._thread.take():
            if isinstance(output, EngineFault):
                faults.append(output)
            else:
                self._taken.setdefault(output.sequence_id, []).append(output)
        return faults

    def end(
        self, job: RunningJob, event: Failed, status: Literal["failed", "stopped", "canceled"]
    ) -> None:
        """End a job before its time, with what it has said so far."""
        self.publisher.say(job.flush())
        self._abort(self.jobs.end(job))
        self._trace_end(job, status, event)
        self.publisher.end(Ending(job.job_id, status, event, exc_info=event.message))

    def stop_late_jobs(self) -> None:
        for job in self.jobs.late_jobs():
            timeout_s = job.job.timeout_s  # None: the queue alone has set a deadline
            limit = "time" if timeout_s is None else f"{timeout_s:g} s"
            words = f"the request was not done within its {limit}"
            self.end(job, _failed(job.job_id, 504, words, "timeout"), "failed")

    def cancel(self, job_ids: Iterable[str], status: Literal["stopped", "canceled"]) -> None:
        for job_id in job_ids:
            job = self.jobs.get(job_id)
            if job is not None:
                words = "the request was cancelled"
                self.end(job, _failed(job_id, 499, words, "cancelled"), status)

    def fail_for_engine(self, job: RunningJob, kind: str) -> None:
        words = f"the engine failed ({kind}), and no attempt is left"
        self.end(job, _failed(job.job_id, 500, words, "engine_error"), "failed")

    def drop(self, job_ids: Iterable[str]) -> None:
        """Let go of jobs without a word: another worker has them, or soon will."""
        names = set(job_ids)
        for job in filter(None, map(self.jobs.get, names)):
            self._trace_end(job, "lost")
        self._abort(self.jobs.remove(names))
        self.publisher.forget(names)

    def halt(self, why: str = "released") -> list[RunningJob]:
        """Stop every running job where it is, to be given back once what it said is sent."""
        halted = self.jobs.live_jobs
        for job in halted:
            self.publisher.say(job.flush())
            self._abort(self.jobs.end(job))
            self._trace_end(job, why)
        return halted

    def _absorb(self, outputs: Sequence[StepOutput]) -> None:
        """Absorb what one sequence has gained in one step or several."""
        last = outputs[-1]
        job = self.jobs.of_sequence(last.sequence_id)
        if job is None:  # aborted while its last step ran
            return
        if last.finish_reason is FinishReason.ABORT:
            self.jobs.drop_sequence(last.sequence_id)
            if len(outputs) > 1:
                self.publisher.say(job.take(outputs[:-1]))
            words = "the engine gave the request up"
            self.end(job, _failed(job.job_id, 500, words, "engine_error"), "failed")
            return
        self.publisher.say(job.take(outputs))
        if last.finish_reason is not None:
            self.jobs.drop_sequence(last.sequence_id)
            self._finish_if_complete(job)

    def _finish_if_complete(self, job: RunningJob) -> None:
        if job.is_finished:
            self.jobs.end(job)
            event = job.finished()
            self._trace_end(job, "finished", event)
            self.publisher.end(Ending(job.job_id, "finished", event))

    def _refuse(self, claim: Claim, event: Failed | Rejected, exc_info: str) -> None:
        if self._spans is not None:
            self._spans.note_refusal(claim.job, claim.attempt, event)
        self.publisher.end(Ending(claim.job.job_id, "failed", event, exc_info=exc_info))

    def _trace_end(
        self, job: RunningJob, outcome: str, event: Finished | Failed | None = None
    ) -> None:
        if self._spans is not None:
            self._spans.note_end(job, outcome, event)

    def _abort(self, sequence_ids: list[str]) -> None:
        if sequence_ids:
            self._thread.post([Abort(sequence_id) for sequence_id in sequence_ids])


def _failed(job_id: str, status: int, message: str, code: str) -> Failed:
    return Failed(job_id, status, message, code)
