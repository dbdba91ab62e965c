"""How many threads a kernel is worth: all of them, unless they were kept from their cores."""

from __future__ import annotations

_NUM_RUNS = 4
"""After so many a team is judged."""
_MIN_SHARE = 0.65
"""Of a team's time, in which its threads must have run: with half of it one thread is as fast."""
_FIRST_REST, _LONGEST_REST = 8, 128
"""Times the time of the runs that went wrong, before they are tried again: twice as long each time
that they go wrong again. One hiccup is soon over, a busy neighbour stays."""


class Attendance:
    """Calls a thread less when the threads of a team wait for cores, and tries again later.

    A thread that is short of a core holds up all others at every barrier, so a team that shares
    its cores with another busy process is slower than a smaller one. Nobody knows this at start.
    """

    def __init__(self, size: int) -> None:
        self._full = self._size = size
        self._rest = _FIRST_REST
        self._until = 0.0  # when one more is tried
        self._is_trial = False
        self._forget_runs()

    def num_called(self, now: float) -> int:
        """Threads for a run that begins now; `now` in seconds of any clock that only rises."""
        if self._size < self._full and now >= self._until and not self._is_trial:
            self._size += 1
            self._is_trial = True
            self._forget_runs()
        return self._size

    def note(self, size: int, seconds: float, cpu_seconds: float, now: float) -> None:
        """A run of so many threads took so long, and this was the time in which they ran."""
        if size != self._size:
            return
        self._num_runs += 1
        self._seconds += seconds
        self._cpu_seconds += cpu_seconds
        if self._num_runs == _NUM_RUNS:
            self._judge(self._cpu_seconds / (size * self._seconds), now)
            self._forget_runs()

    def _judge(self, share: float, now: float) -> None:
        if share >= _MIN_SHARE:
            if self._is_trial:
                self._rest, self._until = _FIRST_REST, now
        elif self._size > 1:
            self._size -= 1
            self._until = now + self._rest * self._seconds
            self._rest = min(2 * self._rest, _LONGEST_REST)
        self._is_trial = False

    def _forget_runs(self) -> None:
        self._num_runs = 0
        self._seconds = self._cpu_seconds = 0.0
