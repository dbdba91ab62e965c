"""Paged attention for one head of keys: scores and mixtures are tiles, too.

Keys are kept in blocks of 16 positions, each [D, 16], and values likewise, [16, D]: what the tile
reads as a weight. In bfloat16 both are kept in pairs, as such weights are: keys along D,
[D / 2, 16], and values along the positions, [8, D]. Queries and weights are rounded.

Which rows are computed together changes no result: a position that a row does not see weighs
exactly 0, and the others are added in their order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from engine.models.cpu.bfloat16 import factors_for, round_rows
from engine.models.cpu.functions import LOWEST, soften
from engine.models.cpu.kernel import inner_kernel
from engine.models.cpu.lanes import scale_into
from engine.models.cpu.product import PANEL, multiply, multiply_panels
from engine.models.cpu.tile import LANES, NARROW, TWO_NARROW

BLOCK = LANES
"""Positions of a block."""


def keep(*_: Any) -> None:
    """Write one position's key and value of a head, `size` floats; slots count over all blocks.

    `keep(key, value, v0, size, slot, head, num_heads, keys, values)`. key: [D]; value: flat, from
    v0 on; keys and values: flat, float32, or uint32 that holds pairs of bfloat16. Kernels alone
    call it.
    """
    raise NotImplementedError


@overload(keep)
def _keep(key, value, v0, size, slot, head, num_heads, keys, values):
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
    pairs = round_rows(key.reshape(1, size)).reshape(-1)
    for i in range(size // 2):
        keys[start + i * BLOCK + place] = pairs[i]
    # The other halves may be another thread's to write: those of the position before or behind.
    halves = round_rows(value[v0 : v0 + size].reshape(1, size)).view(np.uint16).reshape(-1)
    kept, first = values.view(np.uint16), 2 * (start + place // 2 * size) + place % 2
    for i in range(size):
        kept[first + 2 * i] = halves[i]


@inner_kernel
def attend(queries, lows, highs, gap, blocks, head, num_heads, keys, values, scores, out):
    """Rows of one span: queries and out [N, D], scaled; row n sees positions lows[n] to highs[n].

    Positions are counted along `blocks`, those from gap[0] to gap[1] left out (only where all lows
    are 0). keys and values are flat; scores is flat room for N times the blocks' positions.
    """
    num_rows, size = queries.shape
    first, last = lows.min() // BLOCK, (highs.max() + BLOCK - 1) // BLOCK
    width, mixed = (last - first) * BLOCK, out.reshape(-1)
    _score(queries, first, last, blocks, head, num_heads, keys, scores)
    totals = _weigh(num_rows, lows, highs, gap, first * BLOCK, width, scores)
    weights = factors_for(scores[: num_rows * width].reshape(num_rows, width), values)
    depth, flat = weights.shape[1] // (last - first), weights.reshape(-1)
    for number in range(first, last):
        start = (blocks[number] * num_heads + head) * size * depth
        multiply_panels(
            flat,
            (number - first) * depth,
            weights.shape[1],
            num_rows,
            values,
            start,
            size,
            PANEL,
            depth,
            mixed,
            0,
            size,
            size // PANEL,
            number - first,
        )
    for n in range(num_rows):
        factor = np.float32(1.0) / totals[n]
        for i in range(n * size, (n + 1) * size, LANES):
            scale_into(mixed, i, factor, mixed, i)


@inner_kernel
def _score(queries, first, last, blocks, head, num_heads, keys, scores):
    """Scores [N, positions of the blocks] of keys in blocks `first` to `last`."""
    factors, width = factors_for(queries, keys), (last - first) * BLOCK
    num_rows, depth = factors.shape
    flat = factors.reshape(-1)
    for number in range(first, last, 2):
        start = (blocks[number] * num_heads + head) * depth * BLOCK
        column, apart, shape = (number - first) * BLOCK, 0, NARROW
        if number + 1 < last:
            apart = (blocks[number + 1] - blocks[number]) * num_heads * depth * BLOCK
            shape = TWO_NARROW
        multiply(
            shape,
            flat,
            0,
            depth,
            num_rows,
            keys,
            start,
            BLOCK,
            apart,
            depth,
            scores,
            column,
            width,
            0,
        )


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
