"""Products of rows with packed weights, from tiles."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from engine.models.cpu.tile import LANES, make_tile

Floats = npt.NDArray[np.float32]
Panels = npt.NDArray[np.float32] | npt.NDArray[np.uint16]

PANEL = 2 * LANES
"""Columns of a panel."""

_tile_1x1, _tile_2x1, _tile_4x1, _tile_8x1 = (make_tile(n, 1) for n in (1, 2, 4, 8))
_tile_1x2, _tile_2x2, _tile_4x2, _tile_8x2 = (make_tile(n, 2) for n in (1, 2, 4, 8))


def pack_panels(weight: Floats, *, as_bfloat16: bool) -> Panels:
    """A weight [out, in] as panels [ceil(out / 32), in, 32], the last one filled up with zeros.

    With `as_bfloat16` the upper halves alone, which must be all there is (`is_bfloat16`).
    """
    num_out, depth = weight.shape
    padded = np.zeros((-(-num_out // PANEL) * PANEL, depth), np.float32)
    padded[:num_out] = weight
    panels = np.ascontiguousarray(padded.reshape(-1, PANEL, depth).transpose(0, 2, 1))
    return (panels.view(np.uint32) >> 16).astype(np.uint16) if as_bfloat16 else panels


def is_bfloat16(weight: Floats) -> bool:
    """Whether every value is a bfloat16 exactly."""
    return not bool(np.any(np.ascontiguousarray(weight).view(np.uint32) & 0xFFFF))


@njit(nogil=True, cache=True)
def multiply(a, a0, lda, num_rows, w, w0, ldw, depth, c, c0, ldc, adds):
    """Rows times 32 columns; see `make_tile` for the arguments, of which a, w and c are flat."""
    m = 0
    while m + 8 <= num_rows:
        _tile_8x2(a, a0 + m * lda, lda, w, w0, ldw, depth, c, c0 + m * ldc, ldc, adds)
        m += 8
    if m + 4 <= num_rows:
        _tile_4x2(a, a0 + m * lda, lda, w, w0, ldw, depth, c, c0 + m * ldc, ldc, adds)
        m += 4
    if m + 2 <= num_rows:
        _tile_2x2(a, a0 + m * lda, lda, w, w0, ldw, depth, c, c0 + m * ldc, ldc, adds)
        m += 2
    if m < num_rows:
        _tile_1x2(a, a0 + m * lda, lda, w, w0, ldw, depth, c, c0 + m * ldc, ldc, adds)


@njit(nogil=True, cache=True)
def multiply_narrow(a, a0, lda, num_rows, w, w0, ldw, depth, c, c0, ldc, adds):
    """As `multiply`, times 16 columns."""
    m = 0
    while m + 8 <= num_rows:
        _tile_8x1(a, a0 + m * lda, lda, w, w0, ldw, depth, c, c0 + m * ldc, ldc, adds)
        m += 8
    if m + 4 <= num_rows:
        _tile_4x1(a, a0 + m * lda, lda, w, w0, ldw, depth, c, c0 + m * ldc, ldc, adds)
        m += 4
    if m + 2 <= num_rows:
        _tile_2x1(a, a0 + m * lda, lda, w, w0, ldw, depth, c, c0 + m * ldc, ldc, adds)
        m += 2
    if m < num_rows:
        _tile_1x1(a, a0 + m * lda, lda, w, w0, ldw, depth, c, c0 + m * ldc, ldc, adds)


@njit(nogil=True, cache=True)
def project(x, depth, w, w0, out, num_out, first, end, adds):
    """Panels `first` to `end` of x [T, depth] times a packed weight -> those columns of out.

    x and out are [T, depth] and [T, num_out]; w is flat, the matrix begins at w0.
    """
    num_rows = x.shape[0]
    a, c = x.reshape(-1), out.reshape(-1)
    for panel in range(first, end):
        start = w0 + panel * depth * PANEL
        multiply(a, 0, depth, num_rows, w, start, PANEL, depth, c, panel * PANEL, num_out, adds)
