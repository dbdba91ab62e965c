"""Steps over 16 floats at a time, for loops over rows too short for LLVM to make vectors of them.

Written in LLVM's intermediate language, as tiles are. All arrays are flat; indices are of floats.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.models.cpu.tile import LANES, spread

_FLOAT = ir.FloatType()
_FLOATS = ir.VectorType(_FLOAT, LANES)
_LIBERTIES = ("reassoc", "contract", "nsz", "nnan")


@intrinsic
def sum_of_squares(typing_context, x, x0):
    """Of x[x0] to x[x0 + 15]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        [part] = _load(context, builder, signature, args, 0)
        return _sum(builder, builder.fmul(part, part, flags=_LIBERTIES))

    return types.float32(x, types.intp), generate


@intrinsic
def scale_into(typing_context, x, x0, factor, out, out0):
    """out[out0 + i] = x[x0 + i] * factor for i < 16."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        [part] = _load(context, builder, signature, args, 0)
        product = builder.fmul(part, spread(builder, args[2]))
        builder.store(product, _place(context, builder, signature, args, 3), align=4)
        return context.get_dummy_value()

    return types.void(x, types.intp, types.float32, out, types.intp), generate


def make_rotation(*, is_weighted: bool) -> Any:
    """An intrinsic that turns 16 pairs of a head, x[x0 + i] and x[x0 + half + i].

    `rotate(x, x0, half, weight, w0, cos, c0, sin, s0, scale, out, out0)`; both are multiplied by
    weight[w0 + i] and weight[w0 + half + i] before, if it is weighted, and by `scale` after.
    """

    @intrinsic
    def rotate(typing_context, x, x0, half, weight, w0, cos, c0, sin, s0, scale, out, out0):
        index = types.intp
        arguments = (x, index, index, weight, index, cos, index, sin, index)
        signature = types.void(*arguments, types.float32, out, index)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def load(number: int, *, offsets: Any = (None,)) -> list[Any]:
                return _load(context, builder, signature, args, number, offsets)

            def product(a: Any, b: Any) -> Any:
                return builder.fmul(a, b, flags=_LIBERTIES)

            both = (None, args[2])
            a, b = load(0, offsets=both)
            if is_weighted:
                a, b = (product(*p) for p in zip((a, b), load(3, offsets=both), strict=True))
            [c], [s], factor = load(5), load(7), spread(builder, args[9])
            first = builder.fsub(product(a, c), product(b, s), flags=_LIBERTIES)
            second = builder.fadd(product(b, c), product(a, s), flags=_LIBERTIES)
            for value, offset in ((first, None), (second, args[2])):
                place = _place(context, builder, signature, args, 10, offset)
                builder.store(product(value, factor), place, align=4)
            return context.get_dummy_value()

        return signature, generate

    return rotate


def _load(
    context: Any, builder: Any, signature: Any, args: Any, number: int, offsets: Any = (None,)
) -> list[Any]:
    """16 floats from where arguments `number` and the next say, at each offset from there."""
    return [
        builder.load(_place(context, builder, signature, args, number, offset), align=4)
        for offset in offsets
    ]


def _place(
    context: Any, builder: Any, signature: Any, args: Any, number: int, offset: Any = None
) -> Any:
    kind = signature.args[number]
    data = context.make_array(kind)(context, builder, args[number]).data
    index = args[number + 1] if offset is None else builder.add(args[number + 1], offset)
    return builder.bitcast(builder.gep(data, [index]), _FLOATS.as_pointer())


def _sum(builder: Any, vector: Any) -> Any:
    name = f"llvm.vector.reduce.fadd.v{LANES}f32"
    kind = ir.FunctionType(_FLOAT, [_FLOAT, _FLOATS])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [ir.Constant(_FLOAT, 0.0), vector], fastmath=_LIBERTIES)
