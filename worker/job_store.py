"""The worker's side of the queue: claim, beat, emit, release, reap; each one round trip."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import uuid4

from redis import Redis
from redis.exceptions import RedisError

from worker.held_job import Ending, HeldJob, StepRecord
from worker.wire import codec, keys, lua, reasons
from worker.wire.messages import (
    Accepted,
    Delta,
    Failed,
    GenerateJob,
    WorkerInfo,
)


@dataclass(frozen=True)
class Claim:
    """A job that is now ours."""

    job: GenerateJob
    execution_id: str
    queue: str
    attempt: int
    deltas: list[Delta]
    """What earlier attempts logged: output to replay. The next delta's index is last index + 1."""
    deadline: float = float("inf")
    """Monotonic time at which it has taken long enough; Redis' clock says how far off that is."""


class Beat(NamedTuple):
    lost: set[str]  # not ours any more: drop them, say nothing
    cancelled: set[str]  # to be stopped, with an ending of status "canceled"
    registered: bool  # False: RQ has forgotten this worker; register its birth again


class Reaped(NamedTuple):
    requeued: list[str]
    failed: list[str]


class JobStore:
    """One worker's hold on its jobs. Not thread-safe: it belongs to the Redis I/O thread.

    Every call may be made again after a connection error: what was done already is not done twice.
    """

    def __init__(
        self,
        redis: Redis,
        worker_name: str,
        *,
        lease_s: float = 30.0,
        result_ttl_s: int = 3600,
        failure_ttl_s: int = 86400,
        fingerprint: str = "",
        overdue_s: float = 30.0,
        overdue_share: float = 0.125,
        modes: Sequence[str] = (),
    ) -> None:
        """`fingerprint`: of the model; output that another one has begun is not continued here.

        A queue that more urgent ones have kept waiting for `overdue_s` (0: however long) gets
        `overdue_share` of the places. Jobs that name none of the `modes` go to other workers;
        without any, all are taken.
        """
        self._redis = redis
        self._worker_name = worker_name
        self._lease_s = lease_s
        self._fingerprint = fingerprint
        self._offers = [keys.offer(mode) for mode in modes]
        self._overdue_s = overdue_s
        self._overdue_every = max(1, round(1 / overdue_share))
        self._defaults = {"result_ttl": result_ttl_s, "failure_ttl": failure_ttl_s}
        self._frame_head = codec.for_lua(worker_name)
        self._held: dict[str, HeldJob] = {}

    def claim(self, queues: Sequence[str], limit: int) -> list[Claim]:
        """Take up to `limit` jobs, earlier queues first; those that cannot run end as failed."""
        rows = self._call(
            "claim",
            queues=queues,
            limit=limit,
            lease=self._lease_s,
            execution=uuid4().hex,
            foreign=reasons.FOREIGN,
            expired=reasons.EXPIRED,
            overdue=reasons.OVERDUE,
            fingerprint=self._fingerprint,
            unlike=reasons.UNLIKE,
            lacking=reasons.LACKING,
            offers=self._offers,
            overdue_s=self._overdue_s,
            overdue_every=self._overdue_every,
        )
        try:
            claims = self._read_claims(rows)
            self._read_logs([claim for claim in claims if claim.attempt > 1])
        except RedisError:
            # The next beat gives back what was started in our name and is not held.
            self._forget(row[0] for row in rows)
            raise
        return claims

    def beat(self, job_ids: Sequence[str], info: WorkerInfo) -> Beat:
        """Renew our leases, RQ's worker hash and what the API knows of us."""
        lost, cancelled, registered = self._call(
            "beat",
            jobs=self._executions(job_ids),
            members=[f"{job_id}:{held.execution_id}" for job_id, held in self._held.items()],
            lease=self._lease_s,
            info=codec.for_lua(info),
            model=info.model.name,
            model_info=codec.for_lua(info.model),
            model_ttl=keys.MODEL_TTL_S,
            pool=keys.queue_names(info.model.name)[0],
            offers=self._offers,
            fingerprint=self._fingerprint,
            is_draining=info.is_draining,
        )
        unheld = {job_id for job_id in job_ids if job_id not in self._held}
        gone = self._forget(lost)
        return Beat(gone | unheld, {job_id.decode() for job_id in cancelled}, bool(registered))

    def emit(self, step: StepRecord) -> set[str]:
        """Log and publish a step, and end what ends in it; returns the jobs that are not ours."""
        ours, lost = self._take(step)
        due = {job_id: held for job_id, held in ours.items() if held.is_due}
        while due:
            refused, behind = self._write(due)
            lost |= refused
            due = {job_id: due[job_id] for job_id in behind}
            for job_id, log_end in behind.items():
                if not due[job_id].rewind(*log_end):
                    del due[job_id]
                    self.release([job_id])  # its next claim goes on where the log ends
                    lost.add(job_id)
        return lost

    def release(self, job_ids: Sequence[str]) -> None:
        """Put jobs back to their queue's front; no attempt is spent."""
        # Each goes to the front, so the last one first.
        self._call("release", jobs=self._executions(reversed(job_ids)), cancelled=reasons.CANCELLED)
        for job_id in job_ids:
            self._held.pop(job_id, None)

    def reap(self, queues: Sequence[str]) -> Reaped:
        """Requeue (an attempt is spent) or fail the jobs whose lease has run out."""
        return self._bury(
            "reap",
            queues=queues,
            canceled_ttl=self._defaults["result_ttl"],
            expired=reasons.EXPIRED,
            lacking=reasons.LACKING,
        )

    def reap_worker(self, worker_name: str) -> Reaped:
        """Do the same at once for every job of a worker that is known to be dead."""
        return self._bury("reap_worker", dead=worker_name)

    def _write(self, due: dict[str, HeldJob]) -> tuple[set[str], dict[str, tuple[int, int]]]:
        """Send what is due; returns the jobs refused, and those whose log has lost its end."""
        rows = [held.record(job_id) for job_id, held in due.items()]
        has_endings = any(held.ending is not None for held in due.values())
        refused, forgotten = self._call("emit", jobs=rows, has_endings=has_endings)
        behind = {job_id.decode(): (entries, index) for job_id, entries, index in forgotten}
        now = time.monotonic()
        for job_id, held in due.items():
            if job_id not in behind:
                held.note_written(now)
                if held.ending is not None:
                    del self._held[job_id]
        return self._forget(refused), behind

    def _take(self, step: StepRecord) -> tuple[dict[str, HeldJob], set[str]]:
        """Keep the step's deltas until they are written; returns its jobs: ours, and the others."""
        items: list[Accepted | Delta | Ending] = [*step.answers, *step.deltas, *step.endings]
        ours: dict[str, HeldJob] = {}
        lost: set[str] = set()
        for item in items:
            held = self._held.get(item.job_id)
            if held is None:
                lost.add(item.job_id)
                continue
            ours[item.job_id] = held
            held.take(item)
        return ours, lost

    def _read_claims(self, rows: list[Any]) -> list[Claim]:
        claims, unreadable = [], []
        for job_id, execution_id, queue, attempt, payload, time_left in rows:
            name = job_id.decode()
            job = _read_job(name, payload)
            self._held[name] = HeldJob(execution_id.decode(), job is not None and job.stream)
            if job is None:
                unreadable.append(_unreadable(name))
            else:
                deadline = time.monotonic() + float(time_left)
                execution = execution_id.decode()
                claims.append(Claim(job, execution, queue.decode(), attempt, [], deadline))
        if unreadable:
            self.emit(StepRecord(endings=unreadable))
        return claims

    def _read_logs(self, claims: list[Claim]) -> None:
        """Fill in what earlier attempts have logged, all in one round trip."""
        if not claims:
            return
        with self._redis.pipeline(transaction=False) as pipeline:
            for claim in claims:
                pipeline.xrange(keys.log(claim.job.job_id))
            logs = pipeline.execute()
        for claim, entries in zip(claims, logs, strict=True):
            self._held[claim.job.job_id].num_entries = len(entries)
            claim.deltas.extend(codec.deltas_of(entries))

    def _executions(self, job_ids: Iterable[str]) -> list[tuple[str, str]]:
        """Pair jobs with the executions that prove that they are ours."""
        held = ((job_id, self._held.get(job_id)) for job_id in job_ids)
        return [(job_id, job.execution_id) for job_id, job in held if job]

    def _forget(self, job_ids: Iterable[bytes]) -> set[str]:
        names = {job_id.decode() for job_id in job_ids}
        for name in names:
            self._held.pop(name, None)
        return names

    def _bury(self, script: str, **arguments: object) -> Reaped:
        reply = self._call(script, lost=reasons.LOST, cancelled=reasons.CANCELLED, **arguments)
        requeued, failed = ([job_id.decode() for job_id in ids] for ids in reply)
        return Reaped(requeued, failed)

    def _call(self, script: str, **arguments: object) -> Any:
        common = {"worker": self._worker_name, "frame_head": self._frame_head}
        return lua.call(self._redis, script, {**common, **self._defaults, **arguments})


def _read_job(job_id: str, payload: bytes) -> GenerateJob | None:
    try:
        job = codec.decode_job(payload)
    except codec.UnreadableError:
        return None
    # A payload of another job must not speak in that job's name.
    return job if job.job_id == job_id else None


def _unreadable(job_id: str) -> Ending:
    why = reasons.UNREADABLE
    event = Failed(job_id, why["status"], why["message"], why["code"])
    return Ending(job_id, "failed", event, exc_info=why["message"])
