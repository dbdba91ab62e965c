"""The one inner loop of all matrix products: a tile of a few rows by one or two vectors of columns.

Written in LLVM's intermediate language, because the accumulators must stay in registers, which no
compiler promises for arrays. A weight stored as bfloat16 is widened as it is loaded: its float32
is the same number, so half the bytes are read and nothing is lost.

Every output is one chain of fused multiply-adds over the inner dimension, in order. So a row's
result does not depend on the rows beside it, and drafting cannot change what the verifier says.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
"""Floats of a vector: one register of AVX-512, two of AVX2, four of NEON."""

_FLOAT = ir.FloatType()
_INT64 = ir.IntType(64)
_FLOATS = ir.VectorType(_FLOAT, LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_HALVES = ir.VectorType(ir.IntType(16), LANES)
_ZEROS = ir.Constant(_FLOATS, [0.0] * LANES)


def make_tile(num_rows: int, num_vectors: int) -> Any:
    """An intrinsic `tile(a, a0, lda, w, w0, ldw, depth, c, c0, ldc, adds)`.

    c[c0 + m * ldc + n] = sum over k < depth of a[a0 + m * lda + k] * w[w0 + k * ldw + n], for m <
    num_rows and n < num_vectors * LANES; added to what is there where `adds` is not 0. a and c are
    float32; w is float32, or uint16 that holds bfloat16. All are indexed flat; depth is at least 1.
    """

    @intrinsic
    def tile(typing_context, a, a0, lda, w, w0, ldw, depth, c, c0, ldc, adds):
        index = types.intp
        signature = types.void(a, index, index, w, index, index, index, c, index, index, index)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = signature.args
            a_data, w_data, c_data = (
                context.make_array(kinds[i])(context, builder, args[i]).data for i in (0, 3, 7)
            )
            _Tile(builder, num_rows, num_vectors).emit(
                builder.gep(a_data, [args[1]]),
                args[2],
                builder.gep(w_data, [args[4]]),
                args[5],
                args[6],
                builder.gep(c_data, [args[8]]),
                args[9],
                args[10],
            )
            return context.get_dummy_value()

        return signature, generate

    return tile


class _Tile:
    """Emits the loop into a function that is being built."""

    def __init__(self, builder: Any, num_rows: int, num_vectors: int) -> None:
        self._b = builder
        self._places = [(m, v) for m in range(num_rows) for v in range(num_vectors)]
        self._num_rows, self._num_vectors = num_rows, num_vectors
        kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        name = f"llvm.fma.v{LANES}f32"
        self._fma = cgutils.get_or_insert_function(builder.module, kind, name)

    def emit(
        self, a: Any, lda: Any, w: Any, ldw: Any, depth: Any, c: Any, ldc: Any, adds: Any
    ) -> None:
        b = self._b
        before, loop, after = b.block, b.append_basic_block("depth"), b.append_basic_block("done")
        rows = [b.gep(a, [b.mul(lda, _INT64(m))]) for m in range(self._num_rows)]
        b.branch(loop)
        b.position_at_end(loop)
        k = b.phi(_INT64)
        k.add_incoming(_INT64(0), before)
        sums = [b.phi(_FLOATS) for _ in self._places]
        columns = self._load_columns(w, b.mul(k, ldw))
        factors = [self._spread(b.load(b.gep(row, [k]))) for row in rows]
        new = [
            b.call(self._fma, [factors[m], columns[v], old])
            for (m, v), old in zip(self._places, sums, strict=True)
        ]
        following = b.add(k, _INT64(1))
        k.add_incoming(following, loop)
        for old, value in zip(sums, new, strict=True):
            old.add_incoming(_ZEROS, before)
            old.add_incoming(value, loop)
        b.cbranch(b.icmp_signed("<", following, depth), loop, after)
        b.position_at_end(after)
        self._store(new, c, ldc, b.icmp_signed("!=", adds, _INT64(0)))

    def _load_columns(self, w: Any, offset: Any) -> list[Any]:
        b, found = self._b, []
        is_half = w.type.pointee.width == 16 if isinstance(w.type.pointee, ir.IntType) else False
        for v in range(self._num_vectors):
            place = b.gep(w, [b.add(offset, _INT64(v * LANES))])
            if is_half:
                half = b.load(b.bitcast(place, _HALVES.as_pointer()), align=2)
                wide = b.shl(b.zext(half, _INTS), ir.Constant(_INTS, [16] * LANES))
                found.append(b.bitcast(wide, _FLOATS))
            else:
                found.append(b.load(b.bitcast(place, _FLOATS.as_pointer()), align=4))
        return found

    def _spread(self, scalar: Any) -> Any:
        """One float in every lane."""
        b, undefined = self._b, ir.Constant(_FLOATS, ir.Undefined)
        single = b.insert_element(undefined, scalar, ir.IntType(32)(0))
        return b.shuffle_vector(single, undefined, ir.Constant(_INTS, [0] * LANES))

    def _store(self, sums: list[Any], c: Any, ldc: Any, adds: Any) -> None:
        b = self._b
        for (m, v), value in zip(self._places, sums, strict=True):
            offset = b.add(b.mul(ldc, _INT64(m)), _INT64(v * LANES))
            place = b.bitcast(b.gep(c, [offset]), _FLOATS.as_pointer())
            before = b.select(adds, b.load(place, align=4), _ZEROS)
            b.store(b.fadd(before, value), place, align=4)
