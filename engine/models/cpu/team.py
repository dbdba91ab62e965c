"""Threads that run one kernel together: the same code, each its share, meeting at barriers."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engine.models.cpu.atomics import add, load, pause, sleep_while, store, wake
from engine.models.cpu.attendance import Attendance
from engine.models.cpu.kernel import inner_kernel, kernel

_SPINS = 2000
"""Looks at a barrier before its thread sleeps: about 50 microseconds on x86."""
_LINGERS = 6000
"""As many between two kernels: what a step does in Python from one to the next."""
_MIN_PRODUCTS = 4_000_000
"""Multiply-adds that a helper is woken for, which takes as long as the half of them."""
_ARRIVALS, _BEGUN, _SLEEPERS, _SIZE = 0, 1, 16, 17
"""Counters of a run: how often somebody came to a barrier; whether it has begun; and how many sleep
until either changes, 128 bytes on, so that they share no cache line."""
_BELL, _ASLEEP = 32, 16
"""Counters of a helper's bell: how often it was rung; whether the helper sleeps beside it."""
_OPEN = (1 << 62) + (1 << 31)
"""Arrivals that hold nobody up: after a failure there is no one to wait for. Nor do their lower 32
bits, which sleepers compare, ever look like a number of arrivals."""


class Member(NamedTuple):
    """One thread's place in its team, and the counters at which all meet."""

    rank: int
    size: int
    counters: npt.NDArray[np.int64]  # [17], of this run
    bells: npt.NDArray[np.int64]  # [size of the whole team * 32]


@inner_kernel
def begin(member):
    """Let the helpers come, when the calling thread has prepared what they are to find.

    Returns the first barrier's number.

    Only in the kernel has that one let go of Python's lock, which each of them needs on its way.
    One that has come already waits here.
    """
    counters = member.counters
    if member.rank == 0:
        store(counters, _BEGUN, 1)
        if load(counters, _SLEEPERS):
            wake(counters, _BEGUN)
        for rank in range(1, member.size):
            _ring(member.bells, rank)
    spins = 0
    while load(counters, _BEGUN) == 0:
        if spins < _SPINS:
            spins += 1
            pause()
        else:
            add(counters, _SLEEPERS, 1)
            sleep_while(counters, _BEGUN, 0)
            add(counters, _SLEEPERS, -1)
    return 1


@inner_kernel
def leave(member, number):
    """The last barrier, `number`; a helper then looks out for the next kernel for a while.

    Else it would at once fight with the calling thread for Python's lock, and then go to sleep:
    to wake it takes longer than a small kernel.
    """
    bells, place = member.bells, member.rank * _BELL
    heard: int = load(bells, place)
    meet(member, number)
    if member.rank:
        spins = 0
        while spins < _LINGERS and load(bells, place) == heard:
            spins += 1
            pause()


@kernel
def _ring(bells, rank):
    place = rank * _BELL
    add(bells, place, 1)
    if load(bells, place + _ASLEEP):
        wake(bells, place)


@kernel
def _listen(bells, rank, heard):
    """Sleep until the bell has been rung more than `heard` times; returns how often it was."""
    place = rank * _BELL
    store(bells, place + _ASLEEP, 1)
    while load(bells, place) == heard:
        sleep_while(bells, place, heard)
    store(bells, place + _ASLEEP, 0)
    return load(bells, place)


@inner_kernel
def meet(member, number):
    """Wait until all of the team have come to barrier `number` (1, 2, ...); returns the next.

    Who sleeps gives its core to whom it waits for. Yielding would give it to anybody, for a slice
    of some milliseconds at every barrier.
    """
    counters, target = member.counters, number * member.size
    if member.size == 1:
        return number + 1
    count = add(counters, _ARRIVALS, 1) + 1
    if count == target:
        if load(counters, _SLEEPERS):
            wake(counters, _ARRIVALS)
        return number + 1
    spins = 0
    while count < target:
        if spins < _SPINS:
            spins += 1
            pause()
        else:
            # Said before the arrivals are compared again: who comes last wakes us, or we see him.
            # Everybody takes back his own word: who came last may be slow to, and take the next.
            add(counters, _SLEEPERS, 1)
            sleep_while(counters, _ARRIVALS, count)
            add(counters, _SLEEPERS, -1)
        count = load(counters, _ARRIVALS)
    return number + 1


@inner_kernel
def share(count, member):
    """First and end of one member's part of `count` things."""
    return count * member.rank // member.size, count * (member.rank + 1) // member.size


@kernel
def _open(counters):
    """Let everybody pass every barrier."""
    for place in (_ARRIVALS, _BEGUN):
        store(counters, place, _OPEN)
        wake(counters, place)


_Calls = deque[Callable[[], object] | None]


class Team:
    """The calling thread and helpers, which sleep between kernels; ends with its last user."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._attendance = Attendance(size)
        self._bells = np.zeros(size * _BELL, np.int64)
        self._helpers: list[_Helper] = []
        self._clocks: list[int] = []
        for rank in range(1, size):
            helper = _Helper(self._bells, rank)
            thread = threading.Thread(target=helper.serve, name=f"kernel-{rank}", daemon=True)
            thread.start()
            assert thread.ident is not None
            self._clocks.append(time.pthread_getcpuclockid(thread.ident))
            self._helpers.append(helper)
            weakref.finalize(self, helper.take, None)

    @property
    def num_called(self) -> int:
        """Threads that a kernel would be run by now."""
        return self._attendance.num_called(time.perf_counter())

    def run(self, kernel: Any, *args: Any, num_products: int) -> None:
        """Call kernel(member, *args) on every thread; `begin` is its first word, `leave` its last.

        num_products: about how many multiply-adds it does. Few are not worth a helper, and of a
        helper that has no core the calling thread does the work. What it raises on one of them is
        raised here, when all have left it.
        """
        size = self.num_called if self.size > 1 and num_products >= _MIN_PRODUCTS else 1
        counters = np.zeros(_SIZE, np.int64)
        if size == 1:
            kernel(Member(0, 1, counters, self._bells), *args)
            return
        num_compiled = _num_compiled(kernel)
        started, ran = time.perf_counter(), self._cpu_seconds(size)
        self._run_together(kernel, args, size, counters)
        now = time.perf_counter()
        if _num_compiled(kernel) > num_compiled:
            return  # one thread has compiled it, or read it from disk, and the others waited
        self._attendance.note(size, now - started, self._cpu_seconds(size) - ran, now)

    def _run_together(
        self, kernel: Any, args: Seq[Any], size: int, counters: npt.NDArray[np.int64]
    ) -> None:
        failures: list[BaseException] = []
        helpers = self._helpers[: size - 1]
        try:
            for helper in helpers:
                member = Member(helper.rank, size, counters, self._bells)
                helper.calls.append(partial(_take_part, kernel, member, args, failures))
            kernel(Member(0, size, counters, self._bells), *args)
        except BaseException:
            _open(counters)
            _settle(helpers)
            raise
        if failures:
            _settle(helpers)
            raise failures[0]

    def _cpu_seconds(self, size: int) -> float:
        return time.thread_time() + sum(map(time.clock_gettime, self._clocks[: size - 1]))


def _num_compiled(kernel: Any) -> int:
    return len(getattr(kernel, "overloads", ()))


def _take_part(
    kernel: Callable[..., Any], member: Member, args: Seq[Any], failures: list[BaseException]
) -> None:
    try:
        kernel(member, *args)
    except BaseException as error:  # raised again by the thread that called
        failures.append(error)
        _open(member.counters)


def _settle(helpers: Seq[_Helper]) -> None:
    """Wait until these are idle."""
    idle: queue.SimpleQueue[None] = queue.SimpleQueue()
    for helper in helpers:
        helper.take(partial(idle.put, None))
    for _ in helpers:
        idle.get()


class _Helper:
    """What a thread is told to do, and the bell beside which it sleeps."""

    def __init__(self, bells: npt.NDArray[np.int64], rank: int) -> None:
        self.rank = rank
        self.calls: _Calls = deque()
        """Made when the bell rings, or before by a helper that is awake."""
        self._bells = bells

    def take(self, call: Callable[[], object] | None) -> None:
        """Make a call now; None: end."""
        self.calls.append(call)
        _ring(self._bells, self.rank)

    def serve(self) -> None:
        heard = 0
        while True:
            while self.calls:
                call = self.calls.popleft()
                if call is None:
                    return
                call()
                del call  # or the last forward's arrays, and a whole model, would stay
            heard = int(_listen(self._bells, self.rank, heard))
