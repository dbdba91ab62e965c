"""Which jobs this worker holds, and which sequence belongs to which."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from worker.running_job import RunningJob


class JobTable:
    """A job is held from its claim until Redis knows its end; its sequences end before that."""

    def __init__(self) -> None:
        self._jobs: dict[str, RunningJob] = {}
        self._by_sequence: dict[str, RunningJob] = {}
        self._look_at = float("inf")

    def __iter__(self) -> Iterator[RunningJob]:
        return iter(list(self._jobs.values()))

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def job_ids(self) -> list[str]:
        return list(self._jobs)

    @property
    def num_live_sequences(self) -> int:
        return len(self._by_sequence)

    @property
    def live_jobs(self) -> list[RunningJob]:
        return [job for job in self if not job.has_ended]

    @property
    def next_deadline(self) -> float:
        """Monotonic time before which no job is late; none may be when it comes."""
        return self._look_at

    def late_jobs(self) -> list[RunningJob]:
        """Return the live jobs past their deadline; cheap while there are none."""
        now = time.monotonic()
        if now < self._look_at:
            return []
        live = self.live_jobs
        in_time = (job.deadline for job in live if job.deadline > now)
        self._look_at = min(in_time, default=float("inf"))
        return [job for job in live if job.deadline <= now]

    def add(self, job: RunningJob) -> None:
        self._jobs[job.job_id] = job
        self._look_at = min(self._look_at, job.deadline)
        for sequence in job.sequences:
            self._by_sequence[sequence.sequence_id] = job

    def get(self, job_id: str) -> RunningJob | None:
        """Return a job that is still running; one whose end is on its way cannot be stopped."""
        job = self._jobs.get(job_id)
        return None if job is None or job.has_ended else job

    def of_sequence(self, sequence_id: str) -> RunningJob | None:
        return self._by_sequence.get(sequence_id)

    def drop_sequence(self, sequence_id: str) -> None:
        self._by_sequence.pop(sequence_id, None)

    def end(self, job: RunningJob) -> list[str]:
        """Mark a job as ended; return the sequences that the engine still has of it."""
        job.has_ended = True
        left = [one.sequence_id for one in job.sequences if one.sequence_id in self._by_sequence]
        for sequence_id in left:
            del self._by_sequence[sequence_id]
        return left

    def remove(self, job_ids: Iterable[str]) -> list[str]:
        """Let go of jobs; return the sequences that the engine still has of them."""
        left: list[str] = []
        for job_id in job_ids:
            job = self._jobs.pop(job_id, None)
            if job is not None:
                left += self.end(job)
        return left
