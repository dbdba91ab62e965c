"""Leases that run out within a test, and how to see what becomes of the jobs."""

from __future__ import annotations

import time

import redis.asyncio

from worker.wire import queueing

LEASE_S = 0.25
LONG_LEASE_S = 60.0


def outlive_the_lease() -> None:
    time.sleep(LEASE_S * 1.2)


async def status_of(client: redis.asyncio.Redis, job_id: str) -> str | None:
    state = await queueing.job_state(client, job_id)
    return state.status if state else None
