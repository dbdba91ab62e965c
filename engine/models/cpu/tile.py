"""The one inner loop of all matrix products: a tile of a few rows by a few vectors of columns.

Written in LLVM's intermediate language, because the accumulators must stay in registers, which no
compiler promises for arrays. A weight stored as bfloat16 is widened as it is loaded: its float32
is the same number, so half the bytes are read and nothing is lost. One that is stored in pairs of
them is multiplied as it is (`bfloat16.py`).

Every output is one chain of fused multiply-adds over the inner dimension, in order. So a row's
result does not depend on the rows beside it, and drafting cannot change what the verifier says.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.models.cpu.bfloat16 import add_products

LANES = 16
"""Floats of a vector: one register of AVX-512, two of AVX2, four of NEON."""

_FLOAT = ir.FloatType()
_INT64 = ir.IntType(64)
_FLOATS = ir.VectorType(_FLOAT, LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_ZEROS = ir.Constant(_FLOATS, [0.0] * LANES)


NARROW, WIDE, TWO_NARROW, TWO_WIDE = range(4)
"""Shapes of a tile: 16 columns, or 32 side by side; or twice as many, in two places of the weight.

Rows that are few need many columns: a sum waits four cycles for the one before it, and a core can
begin two in each.
"""
_NUM_VECTORS = {NARROW: (1, 1), WIDE: (1, 2), TWO_NARROW: (2, 1), TWO_WIDE: (2, 2)}
_MAX_SUMS = 16  # or the registers would not hold what they are made of


def make_tile(num_rows: int) -> Any:
    """An intrinsic `tile(shape, a, a0, lda, w, w0, ldw, apart, depth, c, c0, ldc, adds)`.

    c[c0 + m * ldc + n] = sum over k < depth of a[a0 + m * lda + k] * w[w0 + k * ldw + n], for m <
    num_rows and all columns n of the shape; added to what is there where `adds` is not 0. The
    second half of the columns of `TWO_` shapes begins at w[w0 + apart]. a and c are float32; w is
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
            kinds = signature.args
            a_data, w_data, c_data = (
                context.make_array(kinds[i])(context, builder, args[i]).data for i in (1, 4, 9)
            )
            places = (
                builder.gep(a_data, [args[2]]),
                args[3],
                builder.gep(w_data, [args[5]]),
                *args[6:9],
                builder.gep(c_data, [args[10]]),
                *args[11:],
            )
            after = builder.append_basic_block("after")
            choice = builder.switch(args[0], after)
            for number, (num_parts, num_vectors) in _NUM_VECTORS.items():
                if num_rows * num_parts * num_vectors > _MAX_SUMS:
                    continue
                block = builder.append_basic_block("shape")
                choice.add_case(_INT64(number), block)
                builder.position_at_end(block)
                _Tile(builder, num_rows, num_parts, num_vectors).emit(*places)
                builder.branch(after)
            builder.position_at_end(after)
            return context.get_dummy_value()

        return signature, generate

    return tile


class _Tile:
    """Emits the loop into a function that is being built."""

    def __init__(self, builder: Any, num_rows: int, num_parts: int, num_vectors: int) -> None:
        self._b = builder
        self._columns = [(part, v) for part in range(num_parts) for v in range(num_vectors)]
        self._places = [(m, n) for m in range(num_rows) for n in range(len(self._columns))]
        self._num_rows = num_rows

    def emit(
        self,
        a: Any,
        lda: Any,
        w: Any,
        ldw: Any,
        apart: Any,
        depth: Any,
        c: Any,
        ldc: Any,
        adds: Any,
    ) -> None:
        b = self._b
        before, loop, after = b.block, b.append_basic_block("depth"), b.append_basic_block("done")
        rows = [b.gep(a, [b.mul(lda, _INT64(m))]) for m in range(self._num_rows)]
        b.branch(loop)
        b.position_at_end(loop)
        k = b.phi(_INT64)
        k.add_incoming(_INT64(0), before)
        sums = [b.phi(_FLOATS) for _ in self._places]
        columns = self._load_columns(w, b.mul(k, ldw), apart)
        factors = [spread(b, b.load(b.gep(row, [k]))) for row in rows]
        new = [
            self._add_product(old, factors[m], columns[n])
            for (m, n), old in zip(self._places, sums, strict=True)
        ]
        following = b.add(k, _INT64(1))
        k.add_incoming(following, loop)
        for old, value in zip(sums, new, strict=True):
            old.add_incoming(_ZEROS, before)
            old.add_incoming(value, loop)
        b.cbranch(b.icmp_signed("<", following, depth), loop, after)
        b.position_at_end(after)
        self._store(new, c, ldc, b.icmp_signed("!=", adds, _INT64(0)))

    def _add_product(self, old: Any, factors: Any, columns: Any) -> Any:
        if columns.type == _INTS:
            return add_products(self._b, old, factors, columns)
        kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        fma = cgutils.get_or_insert_function(self._b.module, kind, f"llvm.fma.v{LANES}f32")
        return self._b.call(fma, [factors, columns, old])

    def _load_columns(self, w: Any, offset: Any, apart: Any) -> list[Any]:
        """Vectors of float32, or of int32 where a weight is kept in pairs."""
        b, found = self._b, []
        is_half = w.type.pointee == ir.IntType(16)
        kind = ir.VectorType(w.type.pointee, LANES)
        for part, v in self._columns:
            start = b.add(offset, _INT64(v * LANES))
            place = b.gep(w, [b.add(start, apart) if part else start])
            vector = b.load(b.bitcast(place, kind.as_pointer()), align=2 if is_half else 4)
            if is_half:
                wide = b.shl(b.zext(vector, _INTS), ir.Constant(_INTS, [16] * LANES))
                vector = b.bitcast(wide, _FLOATS)
            found.append(vector)
        return found

    def _store(self, sums: list[Any], c: Any, ldc: Any, adds: Any) -> None:
        b = self._b
        for (m, n), value in zip(self._places, sums, strict=True):
            offset = b.add(b.mul(ldc, _INT64(m)), _INT64(n * LANES))
            place = b.bitcast(b.gep(c, [offset]), _FLOATS.as_pointer())
            before = b.select(adds, b.load(place, align=4), _ZEROS)
            b.store(b.fadd(before, value), place, align=4)


def spread(builder: Any, scalar: Any) -> Any:
    """One number in every lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    single = builder.insert_element(undefined, scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(single, undefined, ir.Constant(_INTS, [0] * LANES))
