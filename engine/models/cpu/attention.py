"""Paged attention for one head of keys: scores and mixtures are tiles, too.

Keys are kept in blocks of 16 positions, each [D, 16], and values likewise, [16, D]: what the tile
reads as a weight. In bfloat16 both are kept in pairs, as such weights are: keys along D,
[D / 2, 16], and values along the positions, [8, D]. Queries and weights are rounded.

Which rows are computed together changes no result: a position that a row does not see weighs
exactly 0, and the others are added in their order.
"""

from __future__ import annotations

import numpy as np
from numba import types

from engine.models.cpu.attention_tiles import AT_ONCE, mixture_tile, rows_of_a_tile, score_tile
from engine.models.cpu.bfloat16 import nearest, round_into
from engine.models.cpu.functions import LOWEST, soften
from engine.models.cpu.kernel import by_types, inner_kernel
from engine.models.cpu.lanes import scale_into
from engine.models.cpu.product import PANEL
from engine.models.cpu.tile import LANES

BLOCK = LANES
"""Positions of a block."""


@by_types
def keep(key, value, v0, size, slot, head, num_heads, keys, values):
    """Write one position's key and value of a head, `size` floats; slots count over all blocks.

    key: [D]; value: flat, from v0 on; keys and values: flat, float32, or uint32 that holds pairs of
    bfloat16.
    """
    return _keep_pairs if keys.dtype == types.uint32 else _keep_floats


def _keep_floats(key, value, v0, size, slot, head, num_heads, keys, values):
    block, place = divmod(slot, BLOCK)
    start = (block * num_heads + head) * size * BLOCK
    for i in range(size):
        keys[start + i * BLOCK + place] = key[i]
    for i in range(0, size, LANES):
        scale_into(value, v0 + i, np.float32(1.0), values, start + place * size + i)


def _keep_pairs(key, value, v0, size, slot, head, num_heads, keys, values):
    block, place = divmod(slot, BLOCK)
    start = (block * num_heads + head) * size * BLOCK // 2
    for i in range(size // 2):
        low, high = np.uint32(nearest(key[2 * i])), np.uint32(nearest(key[2 * i + 1]))
        keys[start + i * BLOCK + place] = low | high << np.uint32(16)
    # The other halves may be another thread's to write: those of the position before or behind.
    kept, first = values.view(np.uint16), 2 * (start + place // 2 * size) + place % 2
    for i in range(size):
        kept[first + 2 * i] = nearest(value[v0 + i])


@by_types
def num_in(kept):
    """Numbers in each element of keys or values."""
    return (lambda kept: 2) if kept.dtype == types.uint32 else (lambda kept: 1)


@inner_kernel
def attend(
    num_rows, queries, lows, highs, gap, blocks, head, num_heads, keys, values, scores, room, out
):
    """Rows of one span: queries and out [N, D], scaled; row n sees positions lows[n] to highs[n].

    Of all these arrays the first `num_rows` rows. Positions are counted along `blocks`, those from
    gap[0] to gap[1] left out (only where all lows are 0). keys and values are flat; scores and
    `room`, of the keys' type, are flat room for num_rows times the positions of the blocks and of
    three more, or D.
    """
    first, last = lows[0] // BLOCK, np.int64(0)
    for n in range(num_rows):
        first = min(first, lows[n] // BLOCK)
        last = max(last, (highs[n] + BLOCK - 1) // BLOCK)
    width = (last - first + AT_ONCE - 1) // AT_ONCE * AT_ONCE * BLOCK
    _score(num_rows, queries, first, last, blocks, head, num_heads, keys, scores, room, width)
    totals = _weigh(num_rows, lows, highs, gap, first * BLOCK, width, scores)
    _mix(num_rows, totals, first, last, blocks, head, num_heads, values, scores, room, width, out)


@inner_kernel
def _score(num_rows, queries, first, last, blocks, head, num_heads, keys, scores, room, width):
    """Scores [N, width] of keys in blocks `first` to `last`, and of the last one again."""
    flat = round_into(queries.reshape(-1), num_rows * queries.shape[1], room)
    depth = queries.shape[1] // num_in(keys)
    k0, size = head * depth * BLOCK, num_heads * depth * BLOCK
    for number in range(first, last, AT_ONCE):
        m, column = 0, (number - first) * BLOCK
        while m < num_rows:
            count, place = rows_of_a_tile(num_rows - m), m * width + column
            score_tile(
                count, flat, m * depth, depth, keys, k0, blocks, number, last - 1, size, scores,
                place, width,
            )  # fmt: skip
            m += count


@inner_kernel
def _mix(num_rows, totals, first, last, blocks, head, num_heads, values, scores, room, width, out):
    """Values weighed by their scores, by the sums of these: out [N, D]."""
    for n in range(num_rows):
        totals[n] = np.float32(1.0) / totals[n]
    flat = round_into(scores, num_rows * width, room)
    lda, depth = width // num_in(values), BLOCK // num_in(values)
    head_dim, mixed = out.shape[1], out.reshape(-1)
    size = num_heads * depth * head_dim
    for column in range(0, head_dim, 2 * PANEL):
        m, v0 = 0, head * depth * head_dim + column
        num_vectors = 4 if column + 2 * PANEL <= head_dim else 2
        while m < num_rows:
            count, place = rows_of_a_tile(num_rows - m), m * head_dim + column
            mixture_tile(
                count, num_vectors, flat, m * lda, lda, depth, values, v0, blocks, first,
                last - first, size, totals, m, mixed, place, head_dim,
            )  # fmt: skip
            m += count


@inner_kernel
def _weigh(num_rows, lows, highs, gap, start, width, scores):
    """Scores [N, width] of positions from `start` on become numerators; returns their sums, [N].

    0 is what a row does not see.
    """
    totals = np.empty(num_rows, np.float32)
    for n in range(num_rows):
        zero, end = n * width - start, (n + 1) * width  # zero: where position 0 would be
        low, high = zero + lows[n], zero + highs[n]
        gap_low, gap_high = zero + gap[0], zero + gap[1]
        # Left in and taken off the sum later, what stands there could outweigh all that is seen.
        for i in range(gap_low, gap_high):
            scores[i] = LOWEST
        for i in range(n * width, low):
            scores[i] = np.float32(0.0)
        for i in range(high, end):
            scores[i] = np.float32(0.0)
        totals[n] = soften(scores[low:high])
        for i in range(gap_low, gap_high):
            scores[i] = np.float32(0.0)
    return totals
