"""Paged attention for one head of keys: scores and mixtures are tiles, too.

Keys are kept in blocks of 16 positions, each [D, 16], and values likewise, [16, D]: what the tile
reads as a weight. Which rows are computed together changes no result: a position that a row does
not see weighs exactly 0, and the others are added in their order.
"""

from __future__ import annotations

import numpy as np

from engine.models.cpu.functions import LOWEST, soften
from engine.models.cpu.kernel import kernel
from engine.models.cpu.product import PANEL, multiply, multiply_narrow
from engine.models.cpu.tile import LANES

BLOCK = LANES
"""Positions of a block."""


@kernel
def keep(key, value, slot, head, num_heads, keys, values):
    """Write one position's key and value [D] of a head; slots count positions over all blocks."""
    size = key.shape[0]
    block, place = divmod(slot, BLOCK)
    start = (block * num_heads + head) * size * BLOCK
    for i in range(size):
        keys[start + i * BLOCK + place] = key[i]
        values[start + place * size + i] = value[i]


@kernel
def attend(queries, lows, highs, gap, blocks, head, num_heads, keys, values, scores, out):
    """Rows of one span: queries and out [N, D], scaled; row n sees positions lows[n] to highs[n].

    Positions are counted along `blocks`, those from gap[0] to gap[1] left out (only where all lows
    are 0). keys and values are flat; scores is flat room for N times the blocks' positions.
    """
    num_rows, size = queries.shape
    first, last = lows.min() // BLOCK, (highs.max() + BLOCK - 1) // BLOCK
    width = (last - first) * BLOCK
    flat, mixed = queries.reshape(-1), out.reshape(-1)
    for number in range(first, last):
        start = (blocks[number] * num_heads + head) * size * BLOCK
        column = (number - first) * BLOCK
        multiply_narrow(flat, 0, size, num_rows, keys, start, BLOCK, size, scores, column, width, 0)
    totals = np.empty(num_rows, np.float32)
    for n in range(num_rows):
        row = scores[n * width : (n + 1) * width]
        low, high = lows[n] - first * BLOCK, highs[n] - first * BLOCK
        hole = row[gap[0] - first * BLOCK : gap[1] - first * BLOCK]
        # Left in and taken off the sum later, what stands there could outweigh all that is seen.
        hole[:] = LOWEST
        row[:low] = np.float32(0.0)
        row[high:] = np.float32(0.0)
        totals[n] = soften(row[low:high])
        hole[:] = np.float32(0.0)
    for number in range(first, last):
        start = (blocks[number] * num_heads + head) * size * BLOCK
        column = (number - first) * BLOCK
        for i in range(0, size, PANEL):
            multiply(
                scores,
                column,
                width,
                num_rows,
                values,
                start + i,
                size,
                BLOCK,
                mixed,
                i,
                size,
                number - first,
            )
    for n in range(num_rows):
        factor = np.float32(1.0) / totals[n]
        for i in range(size):
            out[n, i] *= factor
