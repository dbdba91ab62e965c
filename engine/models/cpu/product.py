"""Products of rows with packed weights, from tiles."""

from __future__ import annotations

from enum import Enum, auto

import numpy as np
import numpy.typing as npt

from engine.models.cpu.bfloat16 import factors_for
from engine.models.cpu.kernel import inner_kernel
from engine.models.cpu.tile import LANES, TWO_WIDE, WIDE, make_tile

Floats = npt.NDArray[np.float32]
Panels = npt.NDArray[np.float32] | npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

PANEL = 2 * LANES
"""Columns of a panel."""


class Storage(Enum):
    """How a weight is kept, and with that how it is multiplied."""

    FLOATS = auto()
    HALVES = auto()  # float32 products of weights that are bfloat16 exactly, in uint16
    PAIRS = auto()  # bfloat16 products of such, in uint32 (`bfloat16.py`)


_tile_1, _tile_2, _tile_4, _tile_8 = (make_tile(num_rows) for num_rows in (1, 2, 4, 8))


def pack_panels(weight: Floats, storage: Storage) -> Panels:
    """A weight [out, in] as panels [ceil(out / 32), in, 32], the last one filled up with zeros.

    Of pairs [ceil(out / 32), ceil(in / 2), 32]. All but floats keep the upper halves alone, which
    must be all there is (`is_bfloat16`).
    """
    num_out, depth = weight.shape
    padded = np.zeros((-(-num_out // PANEL) * PANEL, depth + depth % 2), np.float32)
    padded[:num_out, :depth] = weight
    panels = padded.reshape(-1, PANEL, padded.shape[1]).transpose(0, 2, 1)
    if storage is Storage.PAIRS:
        halves = (np.ascontiguousarray(panels).view(np.uint32) >> 16).astype(np.uint16)
        pairs = np.stack((halves[:, ::2], halves[:, 1::2]), axis=-1)  # [P, depth / 2, 32, 2]
        return pairs.view(np.uint32)[..., 0]
    panels = np.ascontiguousarray(panels[:, :depth])
    is_half = storage is Storage.HALVES
    return (panels.view(np.uint32) >> 16).astype(np.uint16) if is_half else panels


def num_products(panels: Panels) -> int:
    """Multiply-adds of one row with a packed weight."""
    return panels.size * (2 if panels.dtype == np.uint32 else 1)


def is_bfloat16(weight: Floats) -> bool:
    """Whether every value is a bfloat16 exactly."""
    return not bool(np.any(np.ascontiguousarray(weight).view(np.uint32) & 0xFFFF))


@inner_kernel
def multiply(shape, a, a0, lda, num_rows, w, w0, ldw, apart, depth, c, c0, ldc, adds):
    """Rows times a shape's columns; see `make_tile` for the arguments: a, w and c are flat."""
    # Eight rows have sums enough with half of the columns, which then stay in the nearest cache.
    m = 0
    for half in range(shape):
        m, w1, c1 = 0, w0 + half * apart, c0 + half * PANEL
        while m + 8 <= num_rows:
            a1 = a0 + m * lda
            _tile_8(WIDE, a, a1, lda, w, w1, ldw, apart, depth, c, c1 + m * ldc, ldc, adds)
            m += 8
    if m + 4 <= num_rows:
        a1, c1 = a0 + m * lda, c0 + m * ldc
        _tile_4(shape, a, a1, lda, w, w0, ldw, apart, depth, c, c1, ldc, adds)
        m += 4
    if m + 2 <= num_rows:
        a1, c1 = a0 + m * lda, c0 + m * ldc
        _tile_2(shape, a, a1, lda, w, w0, ldw, apart, depth, c, c1, ldc, adds)
        m += 2
    if m < num_rows:
        a1, c1 = a0 + m * lda, c0 + m * ldc
        _tile_1(shape, a, a1, lda, w, w0, ldw, apart, depth, c, c1, ldc, adds)


@inner_kernel
def multiply_panels(a, a0, lda, num_rows, w, w0, ldw, apart, depth, c, c0, ldc, count, adds):
    """Rows times `count` panels, each `apart` from the one before it."""
    for panel in range(0, count, 2):
        shape = TWO_WIDE if panel + 2 <= count else WIDE
        w1, c1 = w0 + panel * apart, c0 + panel * PANEL
        multiply(shape, a, a0, lda, num_rows, w, w1, ldw, apart, depth, c, c1, ldc, adds)


@inner_kernel
def project(x, w, start, out, num_out, first, end, adds):
    """Panels `first` to `end` of rows x times a packed weight -> those columns of out.

    x and out are [T, depth] and [T, num_out]; w is flat: panels of x's depth, of which number
    `start` is the matrix's first.
    """
    a = factors_for(x, w)
    depth = a.shape[1]
    size = depth * PANEL
    multiply_panels(
        a.reshape(-1),
        0,
        depth,
        a.shape[0],
        w,
        (start + first) * size,
        PANEL,
        size,
        depth,
        out.reshape(-1),
        first * PANEL,
        num_out,
        end - first,
        adds,
    )
