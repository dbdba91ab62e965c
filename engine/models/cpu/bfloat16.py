"""Products in bfloat16, for CPUs that have them: AVX512-BF16 adds two at a time to a float32.

Such a weight is kept in pairs along its depth, each a uint32 with the earlier number in its lower
half, and so are the rows that it is multiplied with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from engine.models.cpu.kernel import by_types, inner_kernel


class _BFloat16(ir.Type):  # type: ignore[misc] # llvmlite has no types
    """LLVM's own type, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat16)

    def __hash__(self) -> int:
        return hash(_BFloat16)


_BFLOAT16 = _BFloat16()


def has_bfloat16_products() -> bool:
    """Whether the code that numba makes here may use them."""
    features: str = cpu_target.target_context.codegen().magic_tuple()[2]
    return "+avx512bf16" in features.split(",")


def add_products(builder: Any, sums: Any, factors: Any, columns: Any) -> Any:
    """sums + the products of two pairs in each lane; sums: <16 x float>, the others <16 x i32>."""
    pairs = ir.VectorType(_BFLOAT16, 32)
    kind = ir.FunctionType(sums.type, [sums.type, pairs, pairs])
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [sums, *(builder.bitcast(x, pairs) for x in (factors, columns))])


@intrinsic
def nearest(typing_context, x):
    """The nearest bfloat16 of a float32, of two the even one, as uint16."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.fptrunc(args[0], _BFLOAT16), ir.IntType(16))

    return types.uint16(types.float32), generate


@inner_kernel
def round_rows(x):
    """Rows [T, D] of float32 as pairs of bfloat16, [T, ceil(D / 2)]; 0 fills the last one up."""
    num_rows, size = x.shape
    width = (size + 1) // 2
    halves = np.empty((num_rows, 2 * width), np.uint16)
    for t in range(num_rows):
        halves[t, -1] = 0
        for i in range(size):
            halves[t, i] = nearest(x[t, i])
    return halves.view(np.uint32)


@by_types
def factors_for(x, w):
    """Rows as a weight is multiplied with them: themselves, or rounded in pairs."""
    if w.dtype == types.uint32:
        return lambda x, w: round_rows(x)
    return lambda x, w: x


@intrinsic
def _round_32(typing_context, x, x0, out, out0):
    """32 numbers of x from x0 on as 16 pairs of out from out0 on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        b = builder
        x, out = (
            b.gep(context.make_array(signature.args[i])(context, b, args[i]).data, [args[i + 1]])
            for i in (0, 2)
        )
        floats = ir.VectorType(ir.FloatType(), 32)
        numbers = b.load(b.bitcast(x, floats.as_pointer()), align=4)
        pairs = b.fptrunc(numbers, ir.VectorType(_BFLOAT16, 32))
        kept = ir.VectorType(ir.IntType(32), 16)
        b.store(b.bitcast(pairs, kept), b.bitcast(out, kept.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(x, types.intp, out, types.intp), generate


@by_types
def round_into(x, count, room):
    """The first `count` numbers of x, a multiple of 32, in the form in which `room` is multiplied.

    x and room: flat. Returns room with pairs in it, or x where room is of floats.
    """
    if room.dtype != types.uint32:
        return lambda x, count, room: x

    def rounded(x, count, room):
        for i in range(0, count, 32):
            _round_32(x, i, room, i // 2)
        return room

    return rounded
