"""Threads that run one kernel together: the same code, each its share, meeting at barriers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_SPINS = 4000
"""Looks at a barrier before the core is offered to others: some microseconds."""


class Member(NamedTuple):
    """One thread's place in its team, and the counter at which all meet."""

    rank: int
    size: int
    arrivals: npt.NDArray[np.int64]  # [1]


@intrinsic
def _add_atomically(typing_context, array, value):
    """array[0] += value; returns what it was. Everything written before is seen after."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, args[1], "seq_cst")

    return types.int64(array, types.int64), generate


@intrinsic
def _yield_core(typing_context):
    """sched_yield(2): whoever waits for this core may have it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        function = cgutils.get_or_insert_function(builder.module, kind, "sched_yield")
        return builder.call(function, [])

    return types.int32(), generate


@njit(nogil=True, cache=True)
def meet(member, number):
    """Wait until all of the team have come to barrier `number` (1, 2, ...); returns the next."""
    if member.size > 1:
        _add_atomically(member.arrivals, 1)
        spins = 0
        while _add_atomically(member.arrivals, 0) < number * member.size:
            spins += 1
            if spins > _SPINS:
                _yield_core()
    return number + 1


@njit(nogil=True, cache=True)
def share(count, member):
    """First and end of one member's part of `count` things."""
    return count * member.rank // member.size, count * (member.rank + 1) // member.size


class Team:
    """The calling thread and helpers, which sleep between kernels."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._calls: list[queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]]] = []
        for rank in range(1, size):
            calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
            self._calls.append(calls)
            name = f"kernel-{rank}"
            threading.Thread(target=_serve, args=(calls,), name=name, daemon=True).start()

    def run(self, kernel: Callable[..., Any], *args: Any, alone: bool = False) -> None:
        """Call kernel(member, *args) on every thread; it must end with a barrier of its own."""
        size = 1 if alone else self.size
        arrivals = np.zeros(1, np.int64)
        for rank in range(1, size):
            self._calls[rank - 1].put((kernel, (Member(rank, size, arrivals), *args)))
        kernel(Member(0, size, arrivals), *args)


def _serve(calls: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]]) -> None:
    while True:
        kernel, args = calls.get()
        kernel(*args)
