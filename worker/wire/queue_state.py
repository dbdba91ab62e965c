"""What an operator asks of the queue: how long it is, how old, how much has failed, how full."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from worker.wire import lua


class QueueState(NamedTuple):
    """One queue at one moment."""

    length: int  # with those that wait for a worker that has what they need
    oldest_age_s: float  # since the job at its head was enqueued; 0 when nobody waits
    num_failed: int  # jobs in RQ's failed registry, which forgets them after their TTL
    num_deferred: int = 0  # jobs that wait for others of their key to end


class StoreMemory(NamedTuple):
    """Redis' own account of its memory, in bytes."""

    used: int
    maximum: int  # 0: no limit is set


async def queue_states(redis: Redis, queues: Sequence[str]) -> dict[str, QueueState]:
    """Return each queue's state, all of one moment; one round trip."""
    report = await lua.acall(redis, "queues", {"queues": list(queues)})
    return {
        queue: QueueState(length, _age_s(waiting, since), num_failed, num_deferred)
        for queue, (length, waiting, since, num_failed, num_deferred) in zip(
            queues, report, strict=True
        )
    }


async def store_memory(redis: Redis) -> StoreMemory | None:
    """Return how full Redis is; None where this user may not ask."""
    try:
        memory = await redis.info("memory")
    except NoPermissionError:
        return None
    return StoreMemory(memory["used_memory"], memory.get("maxmemory", 0))


def _age_s(waiting: bytes | None, since: bytes | None) -> float:
    if waiting is not None:
        return float(waiting)
    if since is None:
        return 0.0
    enqueued = datetime.fromisoformat(since.decode())
    return max(0.0, (datetime.now(UTC) - enqueued).total_seconds())
