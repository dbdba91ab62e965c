"""The one inner loop of all matrix products: a tile of a few rows by a few vectors of columns.

Written in LLVM's intermediate language, because the accumulators must stay in registers, which no
compiler promises for arrays. A weight stored as bfloat16 is widened as it is loaded: its float32
is the same number, so half the bytes are read and nothing is lost. One that is stored in pairs of
them is multiplied as it is (`bfloat16.py`).

Every output is one chain of fused multiply-adds over the inner dimension, in order. So a row's
result does not depend on the rows beside it, and drafting cannot change what the verifier says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.models.cpu.bfloat16 import add_products

LANES = 16
"""Floats of a vector: one register of AVX-512, two of AVX2, four of NEON."""

_FLOAT = ir.FloatType()
INT64 = ir.IntType(64)
FLOATS = ir.VectorType(_FLOAT, LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
ZEROS = ir.Constant(FLOATS, [0.0] * LANES)


WIDE, TWO_WIDE = 1, 2
"""Shapes of a tile, by their parts: 32 columns side by side; or as many in each of two places.

Rows that are few need many columns: a sum waits four cycles for the one before it, and a core can
begin two in each.
"""
_NUM_VECTORS = 2  # of a part
MAX_SUMS = 16
"""Or the registers would not hold what they are made of."""


def make_tile(num_rows: int) -> Any:
    """An intrinsic `tile(shape, a, a0, lda, w, w0, ldw, apart, depth, c, c0, ldc, adds)`.

    c[c0 + m * ldc + n] = sum over k < depth of a[a0 + m * lda + k] * w[w0 + k * ldw + n], for m <
    num_rows and all columns n of the shape; added to what is there where `adds` is not 0. The
    second half of the columns of `TWO_WIDE` begins at w[w0 + apart]. a and c are float32; w is
    float32, or uint16 that holds bfloat16; or both a and w are uint32 that hold pairs of bfloat16,
    and depth counts pairs. All are indexed flat; depth is at least 1. Of shapes with more than 16
    sums of vectors there is no tile.
    """

    @intrinsic
    def tile(typing_context, shape, a, a0, lda, w, w0, ldw, apart, depth, c, c0, ldc, adds):
        index = types.intp
        strides = (index, index)
        signature = types.void(index, a, *strides, w, *strides, index, index, c, *strides, index)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            a, w, c = (place_of(context, builder, signature, args, n) for n in (1, 4, 9))
            lda, ldw, apart, depth, ldc = args[3], args[6], args[7], args[8], args[11]
            adds = builder.icmp_signed("!=", args[12], INT64(0))

            def emit(num_parts: int) -> None:
                parts = [w, builder.gep(w, [apart])][:num_parts]
                columns = [lane for part in parts for lane in lanes(builder, part, 0, _NUM_VECTORS)]
                factors = rows(builder, a, lda, num_rows)
                sums = sum_products(builder, factors, columns, ldw, depth)
                for m, row in enumerate(rows(builder, c, ldc, num_rows)):
                    own = sums[m * len(columns) : (m + 1) * len(columns)]
                    for place, value in zip(lanes(builder, row, 0, len(columns)), own, strict=True):
                        _store(builder, place, value, adds)

            most = MAX_SUMS // (num_rows * _NUM_VECTORS)
            cases = {shape: partial(emit, shape) for shape in (WIDE, TWO_WIDE) if shape <= most}
            choose(builder, args[0], cases)
            return context.get_dummy_value()

        return signature, generate

    return tile


def place_of(context: Any, builder: Any, signature: Any, args: Any, number: int) -> Any:
    """Where array `number` of the arguments is from the index on that follows it."""
    data = context.make_array(signature.args[number])(context, builder, args[number]).data
    return builder.gep(data, [args[number + 1]])


def rows(builder: Any, first: Any, stride: Any, count: int) -> list[Any]:
    return [builder.gep(first, [builder.mul(stride, INT64(m))]) for m in range(count)]


def lanes(builder: Any, start: Any, first: int, end: int) -> list[Any]:
    """Places of vectors `first` to `end` of those that stand side by side from `start` on."""
    return [builder.gep(start, [INT64(v * LANES)]) for v in range(first, end)]


def sum_products(
    builder: Any, factors: list[Any], columns: list[Any], stride: Any, depth: Any
) -> list[Any]:
    """Sums of every row with every vector of columns, row by row; emits a loop over the depth.

    Factors (rows) and columns are where their first elements are; a column's next ones are `stride`
    apart.
    """
    b = builder

    def add_products(k: Any, sums: list[Any]) -> list[Any]:
        offset = b.mul(k, stride)
        vectors = [_load_columns(b, b.gep(column, [offset])) for column in columns]
        spreads = [spread(b, b.load(b.gep(row, [k]))) for row in factors]
        products = [(factor, vector) for factor in spreads for vector in vectors]
        return [_add_product(b, old, *pair) for old, pair in zip(sums, products, strict=True)]

    return fold(b, depth, len(factors) * len(columns), add_products)


def fold(
    builder: Any, count: Any, num_totals: int, add: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """Emit a loop from 0 to count, at least once, over vectors of floats that begin with zeros.

    `add` emits a turn: it is given the turn's number and the totals, and returns the new ones.
    """
    b = builder
    before, loop, after = b.block, b.append_basic_block("fold"), b.append_basic_block("folded")
    b.branch(loop)
    b.position_at_end(loop)
    number, totals = b.phi(INT64), [b.phi(FLOATS) for _ in range(num_totals)]
    new = add(number, totals)
    following = b.add(number, INT64(1))
    begun = zip((number, *totals), (INT64(0), *[ZEROS] * num_totals), strict=True)
    for (old, first), value in zip(begun, (following, *new), strict=True):
        old.add_incoming(first, before)
        old.add_incoming(value, b.block)
    b.cbranch(b.icmp_signed("<", following, count), loop, after)
    b.position_at_end(after)
    return new


def choose(builder: Any, number: Any, cases: Mapping[int, Callable[[], None]]) -> None:
    """Emit code for each case, of which the one of that number runs."""
    after = builder.append_basic_block("after")
    choice = builder.switch(number, after)
    for value, emit in cases.items():
        block = builder.append_basic_block("case")
        choice.add_case(INT64(value), block)
        builder.position_at_end(block)
        emit()
        builder.branch(after)
    builder.position_at_end(after)


def _add_product(builder: Any, old: Any, factors: Any, columns: Any) -> Any:
    if columns.type == _INTS:
        return add_products(builder, old, factors, columns)
    kind = ir.FunctionType(FLOATS, [FLOATS] * 3)
    fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
    return builder.call(fma, [factors, columns, old])


def _load_columns(builder: Any, place: Any) -> Any:
    """A vector of float32, or of int32 where a weight is kept in pairs."""
    kind = place.type.pointee
    is_half = kind == ir.IntType(16)
    vectors = ir.VectorType(kind, LANES).as_pointer()
    vector = builder.load(builder.bitcast(place, vectors), align=2 if is_half else 4)
    if not is_half:
        return vector
    wide = builder.shl(builder.zext(vector, _INTS), ir.Constant(_INTS, [16] * LANES))
    return builder.bitcast(wide, FLOATS)


def _store(builder: Any, place: Any, value: Any, adds: Any) -> None:
    vector = builder.bitcast(place, FLOATS.as_pointer())
    before = builder.select(adds, builder.load(vector, align=4), ZEROS)
    builder.store(builder.fadd(before, value), vector, align=4)


def spread(builder: Any, scalar: Any) -> Any:
    """One number in every lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    single = builder.insert_element(undefined, scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(single, undefined, ir.Constant(_INTS, [0] * LANES))
