"""One part of the server as a child process: started, watched, started again, stopped."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 30.0
GOOD_LIFE_S = 60.0  # whoever lived so long has earned a quick restart


class Part:
    """Knows when it may start again: sooner after a long life, later after many short ones."""

    def __init__(self, name: str, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.name = name
        self._start = start
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_at = 0.0
        self._delay_s = FIRST_DELAY_S

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start_if_due(self) -> None:
        if self._process is None and time.monotonic() >= self._start_at:
            self._process = self._start()
            self._started_at = time.monotonic()

    def take_exit_code(self) -> int | None:
        """Return how the process ended, once, and plan its restart; None while it runs."""
        if self._process is None or self._process.poll() is None:
            return None
        code, self._process = self._process.returncode, None
        now = time.monotonic()
        if now - self._started_at > GOOD_LIFE_S:
            self._delay_s = FIRST_DELAY_S
        self._start_at = now + self._delay_s
        self._delay_s = min(2 * self._delay_s, LONGEST_DELAY_S)
        return code

    def ask_to_stop(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
