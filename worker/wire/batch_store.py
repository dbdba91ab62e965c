"""Files and batches as Redis knows them: what they are, how far they are, who works on them.

A file's bytes are on disk; a batch's lines are jobs. Only API processes read and write this.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct, field
from redis.asyncio import Redis

from worker.wire import keys, lua
from worker.wire.queueing import ENDED

INDEX_TTL_S = 31 * 86400
"""Longer than anything lives that it lists."""

OPEN_STATUSES = ("validating", "in_progress", "finalizing", "cancelling")
MAX_COUNTED = 1000


class FileRecord(Struct, frozen=True, kw_only=True):
    """One file; `expires_at` is Unix time in seconds."""

    file_id: str
    tenant: str
    filename: str
    purpose: str
    num_bytes: int
    created_at: int
    expires_at: int


class LineError(Struct, frozen=True, kw_only=True):
    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchSpec(Struct, frozen=True, kw_only=True):
    """What a batch is asked to do; never changes."""

    tenant: str
    endpoint: str
    input_file_id: str
    created_at: int
    expires_at: int
    metadata: dict[str, str] = field(default_factory=dict)
    output_ttl_s: int


class BatchState(Struct, kw_only=True):
    """How far it is; `stamps` is when each status began."""

    status: str = "validating"
    stamps: dict[str, int] = field(default_factory=dict)
    total: int = 0
    completed: int = 0
    failed: int = 0
    num_input_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    model: str | None = None
    errors: list[LineError] = field(default_factory=list)
    output_file_id: str | None = None
    error_file_id: str | None = None


class _Status(Struct, frozen=True):
    status: str


class Batch(NamedTuple):
    batch_id: str
    spec: BatchSpec
    state: BatchState
    is_cancelled: bool


_encode = msgspec.json.Encoder().encode


async def add_file(redis: Redis, record: FileRecord) -> None:
    async with redis.pipeline(transaction=True) as pipeline:
        pipeline.set(keys.file(record.file_id), _encode(record), exat=record.expires_at)
        index = keys.files_of(record.tenant)
        pipeline.zadd(index, {record.file_id: time.time()})
        pipeline.expire(index, INDEX_TTL_S)
        await pipeline.execute()


async def get_file(redis: Redis, file_id: str) -> FileRecord | None:
    data = await redis.get(keys.file(file_id))
    return None if data is None else msgspec.json.decode(data, type=FileRecord)


async def drop_file(redis: Redis, record: FileRecord) -> None:
    async with redis.pipeline(transaction=True) as pipeline:
        pipeline.delete(keys.file(record.file_id))
        pipeline.zrem(keys.files_of(record.tenant), record.file_id)
        await pipeline.execute()


async def add_batch(
    redis: Redis, batch_id: str, spec: BatchSpec, state: BatchState, digest: str = ""
) -> bool:
    """Make a batch for a request of this digest, unless it is there already."""
    arguments = {
        "id": batch_id,
        "spec": _encode(spec).decode(),
        "state": _encode(state).decode(),
        "digest": digest,
        "index": keys.batches_of(spec.tenant),
        "keep": INDEX_TTL_S,
    }
    return bool(await lua.acall(redis, "batch_add", arguments))


async def get_digest(redis: Redis, batch_id: str) -> str | None:
    """The digest of the request that has made a batch; None if there is no such batch."""
    digest: Any = await redis.hget(keys.batch(batch_id), "digest")
    return None if digest is None else digest.decode()


async def get_batch(redis: Redis, batch_id: str) -> Batch | None:
    fields: Any = await redis.hmget(keys.batch(batch_id), ["spec", "state", "cancel"])
    spec, state, cancel = fields
    if spec is None:
        return None
    return Batch(
        batch_id,
        msgspec.json.decode(spec, type=BatchSpec),
        msgspec.json.decode(state, type=BatchState),
        cancel is not None,
    )


async def count_open(redis: Redis) -> dict[str, int]:
    """Count the batches that have not ended, or the oldest MAX_COUNTED of them, by status."""
    names: Any = await redis.zrange(keys.OPEN_BATCHES, 0, MAX_COUNTED - 1)
    async with redis.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.hmget(keys.batch(name.decode()), ["state", "cancel"])
        found = await pipeline.execute()
    counts = dict.fromkeys(OPEN_STATUSES, 0)
    for state, cancel in found:
        if state is not None:
            status = msgspec.json.decode(state, type=_Status).status
            counts["cancelling" if cancel is not None else status] += 1
    return counts


async def have_ended(redis: Redis, job_ids: list[str]) -> list[bool]:
    """Say of each job whether it has ended, or is forgotten."""
    async with redis.pipeline(transaction=False) as pipeline:
        for job_id in job_ids:
            pipeline.hget(keys.job(job_id), "status")
        statuses = await pipeline.execute()
    return [status is None or status in ENDED for status in statuses]


async def request_cancel(redis: Redis, batch_id: str) -> None:
    """Have whoever works on a batch end it."""
    await redis.hset(keys.batch(batch_id), "cancel", 1)


async def listed(
    redis: Redis, index: str, limit: int, after: str | None, *, is_newest_first: bool = True
) -> list[str] | None:
    """Return up to `limit` + 1 ids; None where there is no `after`."""
    find_rank = redis.zrevrank if is_newest_first else redis.zrank
    await redis.zremrangebyscore(index, "-inf", time.time() - INDEX_TTL_S)
    first = 0
    if after is not None:
        rank: Any = await find_rank(index, after)
        if rank is None:
            return None
        first = rank + 1
    ids: Any = await redis.zrange(index, first, first + limit, desc=is_newest_first)
    return [name.decode() for name in ids]


async def take(redis: Redis, limit: int, lease_s: float) -> list[tuple[str, int]]:
    """Take up to `limit` batches that nobody works on; returns each with its epoch."""
    rows = await lua.acall(redis, "batch_take", {"limit": limit, "lease": lease_s})
    return [(name.decode(), epoch) for name, epoch in rows]


class Standing(NamedTuple):
    """What the worker on a batch hears when it says how far it is."""

    is_ours: bool
    is_cancelled: bool


async def update(
    redis: Redis,
    batch_id: str,
    epoch: int,
    state: BatchState,
    lease_s: float,
    *,
    is_over: bool = False,
) -> Standing:
    """Write a batch's state and keep it for another lease, unless somebody else has taken it."""
    arguments = {
        "id": batch_id,
        "epoch": epoch,
        "state": _encode(state).decode(),
        "lease": lease_s,
        "is_over": is_over,
        "keep": INDEX_TTL_S,
    }
    reply = await lua.acall(redis, "batch_update", arguments)
    return Standing(reply != 0, reply == 2)
