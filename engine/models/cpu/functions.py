"""Norms, rotations and exponentials of rows, in loops that LLVM turns into vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from engine.models.cpu.kernel import reordering_kernel
from engine.models.cpu.lanes import make_rotation, sum_of_squares
from engine.models.cpu.product import PANEL
from engine.models.cpu.tile import LANES

# log2(e), and ln(2) in two parts, so that x - n ln(2) loses nothing (Cody and Waite).
_LOG2_E = np.float32(1.44269504)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_LOWEST, _HIGHEST = np.float32(-87.0), np.float32(88.0)
_HALF = np.float32(0.5)
LOWEST = np.float32(-3e38)
"""Below every score, and finite: code that may be reordered must not meet an infinity."""
_ONE = np.float32(1.0)
# The series of the exponential up to the seventh power; |r| is at most half of ln(2), so what is
# left out is below a unit in the last place.
_C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(1 / n) for n in (2, 6, 24, 120, 720, 5040))

_rotate, _rotate_weighted = make_rotation(is_weighted=False), make_rotation(is_weighted=True)


@intrinsic
def _power_of_two(typing_context, exponent):
    """2 ** exponent as float32, of an int32 between -126 and 127: its bits are built."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        int32 = ir.IntType(32)
        biased = builder.add(args[0], int32(127))
        return builder.bitcast(builder.shl(biased, int32(23)), ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def larger(typing_context, a, b):
    """The larger of two float32, neither of them no number.

    Said on the choice itself, which numba's own maximum leaves out: only so does LLVM take the
    maximum of a row in vectors.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        is_first = builder.fcmp_ordered(">", *args, flags=("nnan", "nsz"))
        return builder.select(is_first, *args, flags=("nnan", "nsz"))

    return types.float32(types.float32, types.float32), generate


@reordering_kernel
def exponential(x):
    """e ** x of a float32, of x held between -87 and 88."""
    x = min(max(x, _LOWEST), _HIGHEST)
    n = np.floor(x * _LOG2_E + _HALF)
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    series = _C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * _C7))))
    return (_ONE + r + r * r * series) * _power_of_two(np.int32(n))


@reordering_kernel
def normalise(x, weight, eps, out):
    """RMSNorm of every row: x and out [T, H], weight [H]."""
    size = x.shape[1]
    for t in range(x.shape[0]):
        total = np.float32(0.0)
        for i in range(size):
            total += x[t, i] * x[t, i]
        factor = np.float32(1.0) / np.sqrt(total / np.float32(size) + eps)
        for i in range(size):
            out[t, i] = x[t, i] * factor * weight[i]


@reordering_kernel
def place_head(x, x0, size, weight, w0, eps, cos, sin, at, scale, out, out0):
    """One head, `size` floats from x0 on: normed, rotated by halves, and scaled into `out`.

    weight: flat, from w0 on; empty where there is no norm. cos, sin: flat, [positions, size / 2],
    of which row `at` is taken. size is a multiple of 32.
    """
    half = size // 2
    if weight.shape[0]:
        total = np.float32(0.0)
        for i in range(0, size, LANES):
            total += sum_of_squares(x, x0 + i)
        scale *= _ONE / np.sqrt(total / np.float32(size) + eps)
        for i in range(0, half, LANES):
            place = at * half + i
            _rotate_weighted(
                x, x0 + i, half, weight, w0 + i, cos, place, sin, place, scale, out, out0 + i
            )
    else:
        for i in range(0, half, LANES):
            place = at * half + i
            _rotate(x, x0 + i, half, weight, 0, cos, place, sin, place, scale, out, out0 + i)


@reordering_kernel
def gate(pairs, panel, out):
    """silu(gates) * ups: rows of a panel of gates and one of ups, [T, 2, 32], to out[:, panel].

    LLVM knows the length of a panel, and makes no loop for a rest. out: [T, panels, 32].
    """
    for t in range(pairs.shape[0]):
        for i in range(PANEL):
            x = pairs[t, 0, i]
            out[t, panel, i] = x / (_ONE + exponential(-x)) * pairs[t, 1, i]


@reordering_kernel
def soften(scores):
    """Softmax numerators in place; returns their sum."""
    largest = LOWEST
    for i in range(scores.shape[0]):
        largest = larger(largest, scores[i])
    total = np.float32(0.0)
    for i in range(scores.shape[0]):
        scores[i] = exponential(scores[i] - largest)
        total += scores[i]
    return total
