"""What wakes the reader of one job: an event with a timeout that costs nothing while events come.

`asyncio.timeout` sets and cancels a timer for every wait, which is for every token.
"""

from __future__ import annotations

import asyncio
import math


class Bell:
    """For one waiting task. Rings are not counted: look first, then wait."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[bool] | None = None
        self._patience_ends = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = math.inf

    def set_patience(self, timeout_s: float | None) -> None:
        """Say how long, from now, the waits that follow may take together; None: for ever."""
        self._patience_ends = math.inf if timeout_s is None else self._loop.time() + timeout_s
        # A timer that is due earlier finds out by itself that it has to go on.
        if self._patience_ends < self._timer_due:
            self._cancel_timer()
            self._set_timer()

    async def wait(self) -> bool:
        """Return True after a ring, False when the patience is over."""
        if self._loop.time() >= self._patience_ends:
            return False
        self._waiter = self._loop.create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def ring(self) -> None:
        self._wake(True)

    def close(self) -> None:
        """Leave no timer behind."""
        self._patience_ends = math.inf
        self._cancel_timer()

    def _look_at_clock(self) -> None:
        self._timer, self._timer_due = None, math.inf
        if self._loop.time() >= self._patience_ends:
            self._wake(False)
        elif self._patience_ends < math.inf:
            self._set_timer()

    def _wake(self, is_ring: bool) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(is_ring)

    def _set_timer(self) -> None:
        self._timer_due = self._patience_ends
        self._timer = self._loop.call_at(self._timer_due, self._look_at_clock)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_due = None, math.inf
