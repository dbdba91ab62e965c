"""What the API does to the queue: enqueue, cancel, read the log, look around."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from worker.wire import codec, keys, lua, reasons, rq_hash
from worker.wire.job_record import JobRecord
from worker.wire.messages import (
    Accepted,
    Delta,
    Event,
    GenerateJob,
    ModelInfo,
    WorkerInfo,
)

ENDED = frozenset((b"finished", b"failed", b"stopped", b"canceled"))
"""RQ's words for jobs that have come to an end."""


class QueueingError(Exception):
    """A job could not be enqueued.

    QueueingError
      + DuplicateJobError
      + KeyReusedError
      + QueueFullError
        + TenantQueueFullError
      + StoreFullError
    """


class DuplicateJobError(QueueingError):
    """A job of this id exists already; look at that one."""


class KeyReusedError(QueueingError):
    """The idempotency key has made another request's job."""


class QueueFullError(QueueingError):
    """As many jobs wait as may wait."""

    def __init__(self, queue_length: int, retry_after_s: int) -> None:
        super().__init__(f"{queue_length} jobs are waiting; try again in {retry_after_s} s")
        self.queue_length = queue_length
        self.retry_after_s = retry_after_s


class TenantQueueFullError(QueueFullError):
    """As many jobs of this tenant wait as may wait of one."""


class StoreFullError(QueueingError):
    """Redis is at its memory limit; jobs that are in it go on."""


class JobState(NamedTuple):
    """What has become of a job, in RQ's words, with what its worker last said."""

    status: str  # queued, deferred, started, finished, failed, stopped, canceled
    position: int | None  # how many jobs will be taken before it, while it waits
    accepted: Accepted | None  # the worker's answer, once given
    ending: Event | None  # Finished, Failed or Rejected, once it has ended
    wait_s: float | None = None  # estimated, until a worker takes it; None: unknown


class Terms(NamedTuple):
    """On what terms a job is enqueued, beside the request itself."""

    idempotency_key: str = ""  # the Redis key of its note; empty: every request is a new one
    body_digest: str = ""  # what must be equal for two requests to be one
    max_queue_s: float | None = None  # how long it may wait for a worker
    outlives_client: bool = False
    is_listed: bool = False  # among the jobs that its tenant asks for later
    record: JobRecord = JobRecord()


NO_TERMS = Terms()


class Receipt(NamedTuple):
    """The job that a request has made, or that it had made before."""

    job_id: str
    position: int
    is_joined: bool = False


class KnownModel(NamedTuple):
    """A model, and what its live workers offer together."""

    info: ModelInfo
    silent_s: float  # seconds since a worker of it spoke; 0 while one lives and takes jobs

    @classmethod
    def of(
        cls, last_words: ModelInfo, silent_s: float, offers: Mapping[str, list[ModelInfo]]
    ) -> KnownModel:
        """Join the offers of a model's workers: a mode that one has, a length that all take."""
        models = offers.get(last_words.name)
        if not models:
            return cls(last_words, max(0.0, silent_s))
        modes = dict.fromkeys(mode for model in models for mode in model.modes)
        max_model_len = min(model.max_model_len for model in models)
        joined = msgspec.structs.replace(last_words, modes=list(modes), max_model_len=max_model_len)
        return cls(joined, 0.0)


async def enqueue(
    redis: Redis,
    job: GenerateJob,
    *,
    queue: str,
    timeout_s: int,
    result_ttl_s: int,
    max_queue_size: int,
    max_attempts: int,
    failure_ttl_s: int = 86400,
    terms: Terms = NO_TERMS,
    max_running: int = 0,
    max_waiting: int = 0,
) -> Receipt:
    """Enqueue a job in one round trip, unless its idempotency key has made one already.

    `max_running` and `max_waiting` are for all jobs of its tenant together; 0 is no limit.
    Raises `DuplicateJobError`, `KeyReusedError`, `QueueFullError`, `TenantQueueFullError` or
    `StoreFullError`, and then changes nothing.
    """
    fields = rq_hash.new_job(
        job,
        queue=queue,
        timeout_s=timeout_s,
        result_ttl_s=result_ttl_s,
        failure_ttl_s=failure_ttl_s,
        max_attempts=max_attempts,
        max_running=max_running,
        max_waiting=max_waiting,
        record=terms.record,
    )
    arguments: dict[str, object] = {
        "id": job.job_id,
        "queue": queue,
        "payload": codec.for_lua(job),
        "fields": fields,
        "timeout": job.timeout_s or timeout_s,
        "result_ttl": result_ttl_s,
        "keep": timeout_s + result_ttl_s,
        "max_queue_size": max_queue_size,
        "tenant": job.tenant,
        "cost": rq_hash.num_places(job),
        "max_running": max_running,
        "max_waiting": max_waiting,
        **_of_terms(terms, job, timeout_s, timeout_s + max(result_ttl_s, failure_ttl_s)),
    }
    try:
        reply = await lua.acall(redis, "enqueue", arguments)
    except OutOfMemoryError as error:
        raise StoreFullError("the queue's store is full") from error
    return _receipt(job.job_id, *reply)


async def cancel(redis: Redis, job_id: str, tenant: str | None = None) -> bool:
    """Take a job off its queue, or tell its worker to stop; False if it has ended or never was.

    With a `tenant`, one of another tenant never was.
    """
    arguments: dict[str, object] = {
        "id": job_id, "cancelled": reasons.CANCELLED, "frame_head": codec.for_lua("")
    }  # fmt: skip
    if tenant is not None:
        arguments["tenant"] = tenant
    return bool(await lua.acall(redis, "cancel", arguments))


async def read_log(redis: Redis, job_id: str, from_index: int = 0) -> list[Delta]:
    """Return the deltas that are logged, from the one numbered `from_index` on."""
    entries = await redis.xrange(keys.log(job_id), min=f"{from_index + 1}-0")
    return codec.deltas_of(entries or (), from_index)


async def job_state(redis: Redis, job_id: str) -> JobState | None:
    """Return what has become of a job; None if it never was or is forgotten."""
    reply = await lua.acall(redis, "state", {"id": job_id})
    if not reply:
        return None
    status, position, answer, ending, wait = reply
    accepted = codec.decode_event(answer) if answer else None
    return JobState(
        status.decode(),
        position,
        accepted if isinstance(accepted, Accepted) else None,
        codec.decode_event(ending) if ending and status in ENDED else None,  # or requeued since
        None if wait is None else float(wait),
    )


async def live_workers(redis: Redis) -> list[WorkerInfo]:
    """Return what each worker last said about itself, unless that is longer ago than its lease."""
    values = await lua.acall(redis, "listed", {"index": "workers", "kind": "worker"})
    return [codec.decode_worker_info(value) for value in values]


async def known_models(redis: Redis) -> list[KnownModel]:
    """Return the models that a worker has offered within the last day."""
    models, workers = await lua.acall(redis, "models", {"model_ttl": keys.MODEL_TTL_S})
    offers: dict[str, list[ModelInfo]] = {}
    for value in workers:
        worker = codec.decode_worker_info(value)
        if not worker.is_draining:
            offers.setdefault(worker.model.name, []).append(worker.model)
    return [
        KnownModel.of(codec.decode_model_info(value), float(silent_s), offers)
        for value, silent_s in models
    ]


def _receipt(job_id: str, outcome: bytes, length: Any, num_recent: int) -> Receipt:
    """Read `enqueue.lua`'s reply; of a job that is joined `length` is the id."""
    if outcome == b"duplicate":
        raise DuplicateJobError(job_id)
    if outcome == b"reused":
        raise KeyReusedError
    if outcome == b"full of own":
        raise TenantQueueFullError(length, _retry_after_s(length, num_recent))
    if outcome == b"full":
        raise QueueFullError(length, _retry_after_s(length, num_recent))
    if outcome == b"joined":
        return Receipt(length.decode(), 0, is_joined=True)
    return Receipt(job_id, length)


def _of_terms(terms: Terms, job: GenerateJob, timeout_s: int, keep_s: int) -> dict[str, object]:
    """Return the arguments of `enqueue.lua` that most jobs go without."""
    arguments: dict[str, object] = {}
    if terms.idempotency_key:
        arguments["idempotency"] = terms.idempotency_key
        arguments["digest"] = terms.body_digest
        arguments["index_ttl"] = keep_s
    if terms.max_queue_s is not None:
        arguments["start_within"] = terms.max_queue_s
    if terms.max_queue_s is not None or terms.outlives_client:
        # Nobody may be there to notice that it waits too long.
        arguments["end_wait_after"] = min(timeout_s, terms.max_queue_s or timeout_s)
    if terms.is_listed:
        arguments["index"] = keys.jobs_of(job.tenant)
        arguments["index_ttl"] = keep_s
    return arguments


def _retry_after_s(length: int, num_recent: int) -> int:
    """Guess when a tenth of the queue will be done, from how many jobs ended in the last 10 s."""
    if num_recent == 0:
        return 10
    return min(60, max(1, math.ceil(0.1 * length * 10 / num_recent)))
