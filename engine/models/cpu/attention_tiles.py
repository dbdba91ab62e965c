"""The inner loops of attention: tiles over the blocks in which keys and values are kept.

They find the blocks themselves: a call for each block would take longer than its products.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from numba import types
from numba.extending import intrinsic

from engine.models.cpu.kernel import inner_kernel
from engine.models.cpu.tile import (
    FLOATS,
    INT64,
    LANES,
    MAX_SUMS,
    choose,
    fold,
    lanes,
    place_of,
    rows,
    spread,
    sum_products,
)

AT_ONCE = 4
"""Blocks that are scored together, or a few rows would have too few sums."""
_NUM_ROWS = (8, 4, 2, 1)
_NUM_VECTORS = (4, 2)


@inner_kernel
def rows_of_a_tile(left):
    """How many of the rows that are left the next tile takes."""
    return 8 if left >= 8 else 4 if left >= 4 else 2 if left >= 2 else 1


@intrinsic
def score_tile(
    typing_context, num_rows, q, q0, depth, keys, k0, blocks, b0, last, size, out, o0, ldo
):
    """out[o0 + m * ldo + p * 16 + n] = sum over k < depth of q[q0 + m * depth + k] * keys[k0 +
    blocks[min(b0 + p, last)] * size + k * 16 + n], for m < num_rows, p < 4 and n < 16.

    Of blocks behind the last one, that is, the last one again. num_rows: of `rows_of_a_tile`.
    """
    index = types.intp
    arguments = (index, q, index, index, keys, index, blocks, *[index] * 3, out, index, index)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        queries, first, numbers, scores = (
            place_of(context, builder, signature, args, number) for number in (1, 4, 6, 10)
        )
        left = builder.sub(args[8], args[7])
        columns = []
        for part in range(AT_ONCE):
            is_behind = builder.icmp_signed(">", INT64(part), left)
            place = builder.gep(numbers, [builder.select(is_behind, left, INT64(part))])
            columns.append(builder.gep(first, [builder.mul(builder.load(place), args[9])]))

        def emit(num_rows: int) -> None:
            factors = rows(builder, queries, args[3], num_rows)
            outs = rows(builder, scores, args[12], num_rows)
            for begin, end in _parts(num_rows, AT_ONCE):
                sums = sum_products(builder, factors, columns[begin:end], INT64(LANES), args[3])
                places = [place for row in outs for place in lanes(builder, row, begin, end)]
                _store(builder, places, sums)

        choose(builder, args[0], {count: partial(emit, count) for count in _NUM_ROWS})
        return context.get_dummy_value()

    return types.void(*arguments), generate


@intrinsic
def mixture_tile(
    typing_context,
    num_rows, num_vectors, w, w0, ldw, depth, values, v0, blocks, b0, num, size, scale, s0, out, o0,
    ldo,
):  # fmt: skip
    """out[o0 + m * ldo + n] = scale[s0 + m] * sum over blocks b < num and k < depth of w[w0 + m *
    ldw + b * depth + k] * values[v0 + blocks[b0 + b] * size + k * ldo + n], for m < num_rows and
    n < 16 num_vectors.

    Each block is summed by itself, which leaves a few rows with sums enough. num_rows: of
    `rows_of_a_tile`; num_vectors: 4 or 2.
    """
    index = types.intp
    arguments = (
        *(index, index),
        *(w, index, index, index),
        *(values, index),
        *(blocks, index, index, index),
        *(scale, index),
        *(out, index, index),
    )

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        places = [place_of(context, builder, signature, args, n) for n in (2, 6, 8, 12, 14)]
        strides = _Strides(weights=args[4], depth=args[5], values=args[16], block=args[11])

        def emit(num_rows: int, num_vectors: int) -> None:
            for begin, end in _parts(num_rows, num_vectors):
                _mix(builder, *places, strides, args[10], num_rows, begin, end)

        shape = builder.add(builder.mul(args[0], INT64(LANES)), args[1])
        cases = {
            count * LANES + num_vectors: partial(emit, count, num_vectors)
            for count in _NUM_ROWS
            for num_vectors in _NUM_VECTORS
        }
        choose(builder, shape, cases)
        return context.get_dummy_value()

    return types.void(*arguments), generate


class _Strides(NamedTuple):
    """Of a mixture's arrays: from row to row, and from block to block."""

    weights: Any
    depth: Any
    values: Any
    block: Any


def _mix(
    builder: Any,
    weights: Any,
    values: Any,
    blocks: Any,
    scales: Any,
    out: Any,
    strides: _Strides,
    num_blocks: Any,
    num_rows: int,
    begin: int,
    end: int,
) -> None:
    """Emit vectors `begin` to `end` of a mixture."""
    b = builder
    factors = rows(b, weights, strides.weights, num_rows)
    columns = lanes(b, values, begin, end)

    def add_block(number: Any, totals: list[Any]) -> list[Any]:
        passed = b.mul(number, strides.depth)
        offset = b.mul(b.load(b.gep(blocks, [number])), strides.block)
        here = [b.gep(row, [passed]) for row in factors]
        there = [b.gep(column, [offset]) for column in columns]
        sums = sum_products(b, here, there, strides.values, strides.depth)
        return [b.fadd(*pair) for pair in zip(totals, sums, strict=True)]

    totals = fold(b, num_blocks, num_rows * (end - begin), add_block)
    for m, row in enumerate(rows(b, out, strides.values, num_rows)):
        scale = spread(b, b.load(b.gep(scales, [INT64(m)])))
        own = totals[m * (end - begin) : (m + 1) * (end - begin)]
        _store(b, lanes(b, row, begin, end), [b.fmul(total, scale) for total in own])


def _parts(num_rows: int, num_vectors: int) -> list[tuple[int, int]]:
    """Vectors that the sums of so many rows leave room for, in turn: first and end of each part."""
    width = min(num_vectors, MAX_SUMS // num_rows)
    return [(begin, begin + width) for begin in range(0, num_vectors, width)]


def _store(builder: Any, places: list[Any], vectors: list[Any]) -> None:
    for place, vector in zip(places, vectors, strict=True):
        builder.store(vector, builder.bitcast(place, FLOATS.as_pointer()), align=4)
