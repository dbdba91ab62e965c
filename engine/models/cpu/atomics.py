"""What threads need that share a counter: atomic access, a pause, and sleep until it changes.

The counters are elements of int64 arrays. Every access here orders what stands before and after
it, so what one thread has written is there for whom it has let go.
"""

from __future__ import annotations

import platform
import sys
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_INT64 = ir.IntType(64)
_MACHINE = platform.machine()
_PAUSES: dict[str, tuple[str, list[Any]]] = {
    "x86_64": ("llvm.x86.sse2.pause", []),
    "aarch64": ("llvm.aarch64.isb", [ir.IntType(32)(15)]),  # which takes about as long
}
_FUTEX_CALLS = {"x86_64": 202, "aarch64": 98}
"""Of Linux, by machine: `asm/unistd_64.h`, `asm-generic/unistd.h`."""
_FUTEX = _FUTEX_CALLS.get(_MACHINE) if sys.platform == "linux" and sys.byteorder == "little" else 0
_WAIT, _WAKE = 128, 129  # FUTEX_WAIT and FUTEX_WAKE of this process alone, `linux/futex.h`


@intrinsic
def add(typing_context, array, index, value):
    """array[index] += value; returns what it was."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature, args)
        return builder.atomic_rmw("add", place, args[2], "seq_cst")

    return types.int64(array, types.int64, types.int64), generate


@intrinsic
def load(typing_context, array, index):
    """array[index]; unlike `add` of 0 it leaves the cache line where it is."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_place(context, builder, signature, args), "seq_cst", 8)

    return types.int64(array, types.int64), generate


@intrinsic
def store(typing_context, array, index, value):
    """array[index] = value"""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature, args)
        builder.store_atomic(args[2], place, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate


@intrinsic
def pause(typing_context):
    """A few dozen cycles in which this thread wants little of its core."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        name, operands = _PAUSES.get(_MACHINE, ("", []))
        if name:
            kind = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), operands)
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def sleep_while(typing_context, array, index, value):
    """Sleep until `wake` is called, unless array[index] is another value already.

    May return for no reason. Where there are no futexes, see futex(2), the core is only yielded.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _FUTEX:  # which compares the lower 32 bits
            place = _place(context, builder, signature, args)
            return _call_futex(builder, place, _WAIT, args[2])
        kind = ir.FunctionType(ir.IntType(32), [])
        function = cgutils.get_or_insert_function(builder.module, kind, "sched_yield")
        return builder.zext(builder.call(function, []), _INT64)

    return types.int64(array, types.int64, types.int64), generate


@intrinsic
def wake(typing_context, array, index):
    """Wake all who sleep at array[index]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature, args)
        return _call_futex(builder, place, _WAKE, _INT64(2**31 - 1)) if _FUTEX else _INT64(0)

    return types.int64(array, types.int64), generate


def _place(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    return builder.gep(data, [args[1]])


def _call_futex(builder: Any, place: Any, operation: int, value: Any) -> Any:
    kind = ir.FunctionType(_INT64, [_INT64], var_arg=True)
    function = cgutils.get_or_insert_function(builder.module, kind, "syscall")
    none = _INT64(0)
    return builder.call(
        function, [_INT64(_FUTEX), place, _INT64(operation), value, none, none, none]
    )
