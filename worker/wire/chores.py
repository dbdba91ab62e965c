"""What API processes do for jobs that have nobody: end long waits, hand out due webhooks."""

from __future__ import annotations

from typing import NamedTuple

from redis.asyncio import Redis

from worker.wire import codec, lua, reasons
from worker.wire.job_views import HookNote


class DueWebhook(NamedTuple):
    """A webhook that is ours to send for the length of a lease."""

    job_id: str
    tenant: str
    event: str  # counts the job's endings: an operator can have it run again
    attempt: int


async def do_chores(
    redis: Redis, *, limit: int, lease_s: float, max_attempts: int
) -> list[DueWebhook]:
    """End jobs that have waited too long, and take up to `limit` webhooks; one round trip."""
    rows = await lua.acall(
        redis,
        "chores",
        {
            "limit": limit,
            "lease": lease_s,
            "max_attempts": max_attempts,
            "expired": reasons.EXPIRED,
            "overdue": reasons.OVERDUE,
            "frame_head": codec.for_lua(""),
        },
    )
    return [
        DueWebhook(job_id.decode(), tenant.decode(), event.decode(), attempt)
        for job_id, tenant, event, attempt in rows
    ]


async def settle(
    redis: Redis, webhook: DueWebhook, state: str, note: HookNote, again_in_s: float | None = None
) -> None:
    """Note how a delivery went; without a next time it is over."""
    arguments: dict[str, object] = {
        "id": webhook.job_id,
        "event": webhook.event,
        "attempt": webhook.attempt,
        "state": state,
        "words": codec.for_lua(note),
    }
    if again_in_s is not None:
        arguments["again_in"] = again_in_s
    await lua.acall(redis, "settle", arguments)
