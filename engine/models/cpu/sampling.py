"""Tokens of many rows in one call: o = argmax(log p~ + G), as `decoding/sampler.py` draws them.

Noise is made where it is added, and its logarithms only where an upper bound, the one that a
float's own bits give, leaves a token a chance. What is left is decided in double precision, so a
token can differ from that of `decoding/sampler.py` only where that one's rounding decides.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from engine.decoding.noise import MAX_CHOICE
from engine.models.cpu.decoder import Ints
from engine.models.cpu.filters import find_peaks, has_odd, survivors
from engine.models.cpu.functions import larger
from engine.models.cpu.kernel import inner_kernel, kernel
from engine.models.cpu.noise import negated_uniform, negated_uniforms
from engine.models.cpu.product import Floats

_BLOCKS = 256  # of four tokens, whose noise is made together
_CHUNK = 128  # tokens of which one bound is held against the best so far
_WIDTH = 512  # entries, of which the largest is found
_SPARSE = 16  # of so many tokens one survivor or less: each makes its own noise
# -log(u) <= 127 ln(2) - ln(2) / 2^23 * (the bits of u), as log2(1 + m) >= m; and some room for
# rounding. -log(-log(1 - u)) is below -log(u).
_AT_ZERO = np.float32(127 * np.log(2.0) + 1e-4)
_BY_BIT = np.float32(np.log(2.0) / 2**23)
_NO_SIGN = np.int32(0x7FFFFFFF)
_NONE = np.float32(-np.inf)


class Draws(NamedTuple):
    """Whose the rows of logits are: those of P picks, one after the other, R in all."""

    vocab_size: int
    reals: Floats  # [P, 3]: temperature, top-p and the logarithm of min-p
    wholes: Ints  # [P, 6]: seed, prompt index, choice, top-k, whether greedy, whether filtered
    starts: Ints  # [P + 1], the picks' first rows
    positions: Ints  # [P], the output position of a pick's first row
    steps: Ints  # [P], denoising steps
    drawn: Ints  # [R], written
    has_noise: bool  # whether some pick is not greedy


@kernel
def draw_tokens(logits, draws, first, end):
    """The tokens of rows `first` to `end`; logits: [R, V or more]."""
    size = draws.vocab_size
    peaks = np.empty((size + _WIDTH - 1) // _WIDTH, np.float32)
    room = 0
    for pick in range(draws.positions.shape[0]):
        if draws.wholes[pick, 5]:
            room = size
    ids, values = np.empty(room, np.int64), np.empty(room, np.float32)
    for pick in range(draws.positions.shape[0]):
        start = draws.starts[pick]
        for row in range(max(start, first), min(draws.starts[pick + 1], end)):
            draws.drawn[row] = _draw(
                logits[row, :size], draws, pick, row - start, peaks, ids, values
            )


@inner_kernel
def _draw(row, draws, pick, place, peaks, ids, values):
    wholes = draws.wholes[pick]
    is_greedy = wholes[4] != 0
    if has_odd(row):  # as an argmax that takes no number for the largest
        return _first_odd(row) if is_greedy else 0
    best = find_peaks(row, _WIDTH, peaks)
    largest = row[best]
    if is_greedy or largest == np.inf or largest == -np.inf:
        return best
    noise = noise_of(draws, pick, place)
    temperature, lowest = draws.reals[pick, 0], _NONE
    if wholes[5]:
        count = survivors(
            row, largest, temperature, wholes[3], draws.reals[pick, 1], draws.reals[pick, 2],
            ids, values,
        )  # fmt: skip
        if count * _SPARSE <= row.shape[0]:
            return _race_of(ids, values, count, noise)
        lowest = values[0]
        for i in range(1, count):
            lowest = min(lowest, values[i])
    return _race(row, best, temperature, lowest, noise)


@inner_kernel
def noise_of(draws, pick, place):
    """What the noise of a pick's row hangs on."""
    wholes = draws.wholes[pick]
    stream = wholes[2] + draws.steps[pick] * MAX_CHOICE
    # Prompt rows are drawn for nobody.
    return wholes[0], wholes[1], stream, max(draws.positions[pick] + place, 0)


@inner_kernel
def _race(row, best, temperature, lowest, noise):
    """The token with the highest noisy score, of those not below `lowest`."""
    size = row.shape[0]
    largest, factor = row[best], np.float32(1.0) / temperature
    words, uniforms = np.empty((4, _BLOCKS), np.uint32), np.empty((_BLOCKS, 4), np.float32)
    bounds, padded = np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.float32)
    most, token = _gumbel(negated_uniform(noise, best)), best
    flat = uniforms.reshape(-1)
    for start in range(0, size, _CHUNK):
        offset = start % (4 * _BLOCKS)
        if offset == 0:
            negated_uniforms(noise, start // 4, words, uniforms)
        part, own = row[start : start + _CHUNK], flat[offset : offset + _CHUNK]
        if start + _CHUNK > size:
            padded[:] = _NONE
            for i in range(size - start):
                padded[i] = row[start + i]
            part = padded
        if np.float64(_bound(part, largest, factor, own, bounds)) < most:
            continue
        for i in range(_CHUNK):
            if np.float64(bounds[i]) < most:
                continue
            value = (part[i] - largest) / temperature
            if value < lowest or value == -np.inf:
                continue
            score = np.float64(value) + _gumbel(own[i])
            if score > most or (score == most and start + i < token):
                most, token = score, start + i
    return token


@inner_kernel
def _bound(part, largest, factor, uniforms, bounds):
    """What no score is above, for each of 128 tokens; returns the highest."""
    bits, most = uniforms.view(np.int32), _NONE
    for i in range(_CHUNK):
        noise = _AT_ZERO - _BY_BIT * np.float32(bits[i] & _NO_SIGN)
        bounds[i] = (part[i] - largest) * factor + noise
    for i in range(_CHUNK):
        most = larger(most, bounds[i])
    return most


@inner_kernel
def _race_of(ids, values, count, noise):
    """The same among few tokens, which rise."""
    most, token = -np.inf, ids[0]
    for i in range(count):
        score = np.float64(values[i]) + _gumbel(negated_uniform(noise, ids[i]))
        if score > most:
            most, token = score, ids[i]
    return token


@inner_kernel
def _gumbel(negated):
    """-log(-log(1 - u)) in double precision, of -u."""
    return -np.log(-np.log1p(np.float64(negated)))


@inner_kernel
def _first_odd(row):
    for i in range(row.shape[0]):
        if row[i] != row[i]:
            return i
    return 0
