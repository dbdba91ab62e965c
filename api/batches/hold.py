"""A process's hold on a batch: what it says and hears of it, until another process takes it."""

from __future__ import annotations

import time

from redis.asyncio import Redis

from api.gateway import reachable
from worker.wire import batch_store
from worker.wire.batch_store import Batch

LEASE_S = 10.0
ENDS = ("completed", "failed", "expired", "cancelled")

CANCELLED = "batch_cancelled", "This request was cancelled before it was answered."
_EXPIRED = "batch_expired", "The batch expired before this request was answered."


class TakenOverError(Exception):
    """Another process works on this batch now."""


class Hold:
    """Writes a batch's state for as long as its `epoch` is the last one."""

    def __init__(self, redis: Redis, batch: Batch, epoch: int) -> None:
        self.state = batch.state
        self.is_cancelled = batch.is_cancelled
        self._redis = redis
        self._batch = batch
        self._epoch = epoch
        self._said_at = 0.0

    @property
    def is_late(self) -> bool:
        return time.time() >= self._batch.spec.expires_at

    @property
    def must_end(self) -> bool:
        return self.is_cancelled or self.is_late

    @property
    def why_it_ended(self) -> tuple[str, str]:
        """Code and words for lines that have no answer."""
        return CANCELLED if self.is_cancelled else _EXPIRED

    @property
    def end(self) -> str:
        """The status to end with."""
        if self.is_cancelled:
            return "cancelled"
        if self.state.errors:
            return "failed"
        return "expired" if self.is_late else "completed"

    async def enter(self, status: str) -> None:
        """Begin a status; raises as `say`."""
        self.state.status = status
        self.state.stamps[status] = int(time.time())
        await self.say(is_over=status in ENDS)

    async def say_when_due(self) -> None:
        if time.monotonic() > self._said_at + LEASE_S / 5:
            await self.say()

    async def say(self, *, is_over: bool = False) -> None:
        """Write the state, and keep the batch; raises TakenOverError or UnavailableError."""
        standing = await reachable(
            batch_store.update(
                self._redis,
                self._batch.batch_id,
                self._epoch,
                self.state,
                LEASE_S,
                is_over=is_over,
            )
        )
        if not standing.is_ours:
            raise TakenOverError(self._batch.batch_id)
        if standing.is_cancelled:
            self.is_cancelled = True
            self.state.stamps.setdefault("cancelling", int(time.time()))
        self._said_at = time.monotonic()

    async def give_back(self) -> None:
        """Let another process have the batch at once."""
        await batch_store.update(
            self._redis, self._batch.batch_id, self._epoch, self.state, lease_s=0.0
        )
