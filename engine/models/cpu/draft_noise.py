"""What is added to a draft's logits before its tokens are drawn: T * G, and the filters' bans.

Drafts decide no output: here the logarithms are single precision, good to some units in the last
place, and a tie that they decide otherwise than the verifier's costs one draft token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from engine.models.cpu.filters import find_peaks, survivors
from engine.models.cpu.kernel import inner_kernel
from engine.models.cpu.noise import negated_uniform, negated_uniforms
from engine.models.cpu.sampling import noise_of

_BLOCKS = 256  # of four tokens, whose noise is made together
_ONE, _TWO, _NONE = np.float32(1.0), np.float32(2.0), np.float32(-np.inf)
_LN2 = np.float32(np.log(2.0))
_TWO_THIRDS = np.int32(0x3F2AAAAB)  # the bits of 2 / 3
_MANTISSA = np.int32(23)
_S3, _S5, _S7, _S9 = (np.float32(1 / n) for n in (3, 5, 7, 9))


@inner_kernel
def add_noise(logits, draws, first, end, out):
    """T * G of rows `first` to `end` into out [R, V or more]; -inf where the filters refuse."""
    size = draws.vocab_size
    ids, values = np.empty(size, np.int64), np.empty(size, np.float32)
    peaks = np.empty(1, np.float32)
    for pick in range(draws.positions.shape[0]):
        start = draws.starts[pick]
        wholes, reals = draws.wholes[pick], draws.reals[pick]
        for r in range(max(start, first), min(draws.starts[pick + 1], end)):
            row, own = logits[r, :size], out[r]
            noise = noise_of(draws, pick, r - start)
            own[size:] = np.float32(0.0)
            if wholes[4]:
                own[:size] = np.float32(0.0)
            elif wholes[5]:
                find_peaks(row, size, peaks)
                count = survivors(
                    row, peaks[0], reals[0], wholes[3], reals[1], reals[2], ids, values
                )
                own[:size] = _NONE
                _scatter(ids, count, reals[0], noise, own)
            else:
                _fill(size, reals[0], noise, own)


@inner_kernel
def _scatter(ids, count, temperature, noise, out):
    for i in range(count):
        out[ids[i]] = temperature * _gumbel(negated_uniform(noise, ids[i]))


@inner_kernel
def _fill(size, temperature, noise, out):
    words, uniforms = np.empty((4, _BLOCKS), np.uint32), np.empty((_BLOCKS, 4), np.float32)
    flat = uniforms.reshape(-1)
    for start in range(0, size, 4 * _BLOCKS):
        negated_uniforms(noise, start // 4, words, uniforms)
        own = out[start : start + 4 * _BLOCKS]
        for i in range(own.shape[0]):
            own[i] = temperature * _gumbel(flat[i])


@intrinsic
def _bits_of(typing_context, x):
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def _of_bits(typing_context, bits):
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@inner_kernel
def _gumbel(negated):
    """-log(-log(1 - u)) of -u."""
    rest = _ONE + negated
    # log(1 - u), exact where 1 - u is rounded (Kahan): log(w) * u / (1 - w), w being the rounded.
    rate = _log(rest) * (negated / (rest - _ONE))
    return -_log(-negated if rest == _ONE else -rate)


@inner_kernel
def _log(x):
    """Natural logarithm of a positive, normal float32: 2 artanh(s), s = (m - 1) / (m + 1)."""
    exponent = (_bits_of(x) - _TWO_THIRDS) >> _MANTISSA
    m = _of_bits(np.int32(_bits_of(x) - np.int32(exponent << _MANTISSA)))
    s = (m - _ONE) / (m + _ONE)
    square = s * s
    series = _ONE + square * (_S3 + square * (_S5 + square * (_S7 + square * _S9)))
    return np.float32(exponent) * _LN2 + _TWO * s * series
