"""What other threads and signal handlers want of the main loop, and the bell that wakes it."""

from __future__ import annotations

import contextlib
import os
import select
from collections import deque


class Mailbox:
    """Every method but `wait` and the readers may be called from any thread or signal handler.

    The bell is a pipe, because `threading.Event` takes a lock, and a signal handler that
    interrupts the lock's holder would wait for itself.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._jobs_to_stop: deque[str] = deque()
        self._has_wake = True  # the first look at the queues needs no wake
        self._has_question = False
        self.num_stop_calls = 0

    def ring(self) -> None:
        """Wake the loop: the engine has output."""
        with contextlib.suppress(BlockingIOError):  # full: it has been rung often enough
            os.write(self._writer, b"!")

    def wake(self) -> None:
        """Say that a queue may hold a job."""
        self._has_wake = True
        self.ring()

    def ask(self) -> None:
        """Say that somebody has a question."""
        self._has_question = True
        self.ring()

    def stop_job(self, job_id: str) -> None:
        self._jobs_to_stop.append(job_id)
        self.ring()

    def request_stop(self) -> None:
        """Ask the worker to finish what runs and end; a second time: to end now."""
        self.num_stop_calls += 1
        self.ring()

    def wait(self, timeout_s: float) -> None:
        """Return after a ring, or when the time is over; rings are not counted."""
        select.select([self._reader], [], [], max(0.0, timeout_s))
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 4096)

    def take_wake(self) -> bool:
        has_wake, self._has_wake = self._has_wake, False
        return has_wake

    def take_question(self) -> bool:
        has_question, self._has_question = self._has_question, False
        return has_question

    def take_jobs_to_stop(self) -> set[str]:
        taken = set()
        while self._jobs_to_stop:
            taken.add(self._jobs_to_stop.popleft())
        return taken
