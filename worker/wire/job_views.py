"""What the API asks of jobs that are there already: follow, view, list."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis

from worker.wire import codec, keys, lua, queueing
from worker.wire.job_record import JobRecord
from worker.wire.messages import Accepted, Event, GenerateJob

MAX_LISTED = 100


class HookNote(msgspec.Struct, frozen=True):
    """How the last try to deliver a webhook went."""

    at: float  # Unix time
    status: int | None = None  # HTTP status, where there was an answer
    error: str | None = None


class HookView(NamedTuple):
    """How far a webhook's delivery is."""

    state: str  # pending, delivered, failed
    attempts: int
    next_at: float | None
    note: HookNote | None


class JobView(NamedTuple):
    """All that a job's owner may see of it, but for its output."""

    job: GenerateJob
    record: JobRecord
    status: str  # in RQ's words: queued, started, finished, failed, stopped, canceled
    position: int | None
    wait_s: float | None  # estimated, until a worker takes it
    ttl_s: int  # until it is forgotten, as things stand
    accepted: Accepted | None
    ending: Event | None
    started_at: float | None
    ended_at: float | None
    attempt: int
    hook: HookView | None


class Followed(NamedTuple):
    """A request, and what of it its answer needs."""

    job: GenerateJob
    record: JobRecord


async def follow(redis: Redis, job_id: str, tenant: str, api_id: str) -> Followed | None:
    """Let an API process hear what a job says from now on; None if the tenant has no such job."""
    arguments = {"id": job_id, "tenant": tenant, "api": api_id}
    reply = await lua.acall(redis, "follow", arguments)
    return None if reply is None else Followed(codec.decode_job(reply[0]), _record(reply[1]))


async def view(redis: Redis, job_id: str, tenant: str) -> JobView | None:
    """Look at a job, in one round trip; None if the tenant has no such job."""
    reply = await lua.acall(redis, "view", {"id": job_id, "tenant": tenant})
    if not reply:
        return None
    status, position, wait, ttl, hook_due, payload, record, answer, ending, *rest = reply
    started_at, ended_at, attempt, hook_state, hook_attempts, hook_words = rest
    accepted = codec.decode_event(answer) if answer else None
    return JobView(
        job=codec.decode_job(payload),
        record=_record(record),
        status=status.decode(),
        position=position,
        wait_s=_number(wait),
        ttl_s=ttl,
        accepted=accepted if isinstance(accepted, Accepted) else None,
        ending=codec.decode_event(ending) if ending and status in queueing.ENDED else None,
        started_at=_unix_time(started_at),
        ended_at=_unix_time(ended_at),
        attempt=int(attempt or 0),
        hook=_hook(hook_state, hook_attempts, hook_due, hook_words),
    )


async def forget(redis: Redis, job_id: str, tenant: str) -> bool | None:
    """Drop request and output of an ended job; False: it has not ended; None: no such job."""
    reply = await lua.acall(redis, "forget", {"id": job_id, "tenant": tenant})
    return {1: True, -1: False}.get(reply)


async def list_jobs(
    redis: Redis, tenant: str, limit: int, after: str | None = None
) -> list[str] | None:
    """Return up to `limit` + 1 ids of a tenant's submitted jobs, the newest first.

    None if it has none named `after`.
    """
    arguments: dict[str, object] = {"index": keys.jobs_of(tenant), "limit": limit}
    if after is not None:
        arguments["after"] = after
    ids = await lua.acall(redis, "jobs", arguments)
    return None if ids is None else [job_id.decode() for job_id in ids]


def _hook(
    state: bytes | None, attempts: bytes | None, due: bytes | None, words: bytes | None
) -> HookView | None:
    if state is None:
        return None
    note = msgspec.msgpack.decode(words, type=HookNote) if words else None
    return HookView(state.decode(), int(attempts or 0), _number(due), note)


def _record(packed: bytes | None) -> JobRecord:
    return codec.decode_job_record(packed) if packed else JobRecord()


def _number(text: Any) -> float | None:
    return None if text is None else float(text)


def _unix_time(text: bytes | None) -> float | None:
    """Read the time as RQ writes it."""
    return datetime.fromisoformat(text.decode()).timestamp() if text else None
