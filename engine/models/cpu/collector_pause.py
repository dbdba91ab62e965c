"""Keeps Python's garbage collector away while numba compiles.

Each collection would look through all that torch and transformers have made, because what a
compiler makes lives on: a sixteenth of compiling.
"""

from __future__ import annotations

import gc

from numba.core.event import Event, Listener


class CollectorPause(Listener):
    """Hears of every function that is compiled; numba compiles on one thread at a time."""

    def __init__(self) -> None:
        self._depth = 0
        self._was_enabled = False

    def on_start(self, event: Event) -> None:
        if self._depth == 0:
            self._was_enabled = gc.isenabled()
            gc.disable()
        self._depth += 1

    def on_end(self, event: Event) -> None:
        self._depth -= 1
        if self._depth == 0 and self._was_enabled:
            gc.enable()
