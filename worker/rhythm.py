"""When output is sent: at once after a pause, else gathered for some milliseconds."""

from __future__ import annotations

from collections.abc import Callable


class Rhythm:
    """Rests after each sending. The engine's thread calls `heard`, the main loop all else.

    Nobody sees that two words came 0.4 ms apart. But each sending costs a turn of the loop, which
    takes Python's lock from the engine, a script, a frame, and a write for each stream.
    """

    def __init__(self, interval_s: float, ring: Callable[[], None]) -> None:
        """`interval_s`: the rest, in seconds; 0: none. `ring` wakes the loop."""
        self._interval_s = interval_s
        self._ring = ring
        self._rests_until = 0.0
        self._is_resting = False

    @property
    def next_look(self) -> float:
        """Monotonic time at which the loop looks for output of itself, without being rung for."""
        return self._rests_until if self._is_resting else float("inf")

    def heard(self, is_urgent: bool) -> None:
        """Note that there is output; what is urgent does not wait until the rest is over."""
        if is_urgent or not self._is_resting:
            self._ring()

    def hold(self) -> None:
        """Note that the loop is awake: what comes now it finds without being rung for."""
        self._is_resting = True

    def rest(self, now: float) -> None:
        """Begin a rest: output was sent, and more is on its way."""
        self._rests_until = now + self._interval_s

    def listen(self, now: float) -> bool:
        """Say that the loop is about to sleep; return whether it is rung for all output now.

        Whoever gets True must look for output once more, for it was not rung for until now.
        """
        self._is_resting = now < self._rests_until
        return not self._is_resting
