"""Calls that recurse as deep as their input says, on a stack that no accepted input overflows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

STACK_BYTES = 256 << 20
"""Address space, of which only what is used is taken. Rules that refer to each other took 8 KiB a
level, and a definition has at most some 13000."""

_sizing = threading.Lock()  # the size is one for the whole process


def on_large_stack(call: Callable[[], T]) -> T:
    """What a call returns or raises, made on a thread of its own: an overflow ends the process."""
    with ThreadPoolExecutor(1) as pool:
        with _sizing:
            usual = threading.stack_size(STACK_BYTES)
            try:
                future = pool.submit(call)  # starts the thread
            finally:
                threading.stack_size(usual)
        return future.result()
