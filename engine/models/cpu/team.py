"""Threads that run one kernel together: the same code, each its share, meeting at barriers."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from collections.abc import Sequence as Seq
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.models.cpu.kernel import kernel

_SPINS = 4000
"""Looks at a barrier before the core is offered to others: some microseconds."""
_OPEN = 1 << 62
"""Arrivals that hold nobody up: after a failure there is no one to wait for."""


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
def _read_atomically(typing_context, array):
    """array[0]. What others wrote before they added to it is seen after."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load_atomic(data, "acquire", 8)

    return types.int64(array), generate


@intrinsic
def _yield_core(typing_context):
    """sched_yield(2): whoever waits for this core may have it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        function = cgutils.get_or_insert_function(builder.module, kind, "sched_yield")
        return builder.call(function, [])

    return types.int32(), generate


@kernel
def meet(member, number):
    """Wait until all of the team have come to barrier `number` (1, 2, ...); returns the next."""
    if member.size > 1:
        _add_atomically(member.arrivals, 1)
        spins = 0
        while _read_atomically(member.arrivals) < number * member.size:
            spins += 1
            if spins > _SPINS:
                _yield_core()
    return number + 1


@kernel
def share(count, member):
    """First and end of one member's part of `count` things."""
    return count * member.rank // member.size, count * (member.rank + 1) // member.size


_Calls = queue.SimpleQueue[Callable[[], object] | None]


class Team:
    """The calling thread and helpers, which sleep between kernels and leave with the team."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._calls: list[_Calls] = [queue.SimpleQueue() for _ in range(1, size)]
        for rank, calls in enumerate(self._calls, 1):
            name = f"kernel-{rank}"
            threading.Thread(target=_serve, args=(calls,), name=name, daemon=True).start()
        weakref.finalize(self, _dismiss, self._calls)

    def run(self, kernel: Callable[..., Any], *args: Any) -> None:
        """Call kernel(member, *args) on every thread; it must end with a barrier of its own.

        What it raises on one of them is raised here, when all have left it.
        """
        arrivals = np.zeros(1, np.int64)
        failures: list[BaseException] = []
        try:
            for rank, calls in enumerate(self._calls, 1):
                member = Member(rank, self.size, arrivals)
                calls.put(partial(_take_part, kernel, member, args, failures))
            kernel(Member(0, self.size, arrivals), *args)
        except BaseException:
            arrivals[0] = _OPEN
            self._settle()
            raise
        if failures:
            self._settle()
            raise failures[0]

    def _settle(self) -> None:
        """Wait until all helpers are idle."""
        idle: queue.SimpleQueue[None] = queue.SimpleQueue()
        for calls in self._calls:
            calls.put(partial(idle.put, None))
        for _ in self._calls:
            idle.get()


def _take_part(
    kernel: Callable[..., Any], member: Member, args: Seq[Any], failures: list[BaseException]
) -> None:
    try:
        kernel(member, *args)
    except BaseException as error:  # raised again by the thread that called
        failures.append(error)
        member.arrivals[0] = _OPEN


def _serve(calls: _Calls) -> None:
    while (call := calls.get()) is not None:
        call()
        del call  # and with it a whole model, of which this may be the last trace


def _dismiss(helpers: Seq[_Calls]) -> None:
    for calls in helpers:
        calls.put(None)
