"""Gumbel noise on a CPU: `decoding/noise.py` bit for bit, all but its logarithms in one loop."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engine.decoding.noise import KEY_STEPS, MULTIPLIERS, NUM_ROUNDS
from engine.models.cpu.kernel import kernel

_MULTIPLIER_0, _MULTIPLIER_1 = (np.uint64(number) for number in MULTIPLIERS)
_KEY_STEP_0, _KEY_STEP_1 = (np.uint32(number) for number in KEY_STEPS)
_HALF_WORD = np.uint64(32)
_HALF = np.float32(0.5)
_SCALE = np.float32(-(2.0**-32))
_LOWEST = np.float32(-(1.0 - 2.0**-24))
_ROWS_AT_ONCE = 32  # what a core's cache holds while both logarithms are taken


def gumbel(
    seeds: Tensor, prompt_indices: Tensor, choices: Tensor, positions: Tensor, vocab_size: int
) -> Tensor:
    """Standard Gumbel noise, [R] int64 each, side by side in memory -> [R, V] float32."""
    numbers = [column.numpy() for column in (seeds, prompt_indices, choices, positions)]
    noise = np.empty((len(seeds), (vocab_size + 3) // 4, 4), np.float32)
    for start in range(0, len(seeds), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        part = noise[rows]
        fill_with_negated_uniforms(*(column[rows] for column in numbers), part)
        # torch's logarithms, so that the noise is the same with and without kernels.
        torch.from_numpy(part).log1p_()
        np.negative(part, out=part)
        torch.from_numpy(part).log_()
        np.negative(part, out=part)
    return torch.from_numpy(noise).flatten(1)[:, :vocab_size]


@kernel
def fill_with_negated_uniforms(seeds, prompts, choices, positions, out):
    """-u of every number's Philox word, u in (0, 1): [R] int64 each, out: [R, blocks, 4]."""
    for row in range(out.shape[0]):
        negated_uniforms(seeds[row], prompts[row], choices[row], positions[row], 0, out[row])


@kernel
def negated_uniforms(seed, prompt, choice, position, first_block, out):
    """-u of a row's words from block `first_block` on, out: [blocks, 4] float32.

    A denoising step stands in the upper half of `choice`.
    """
    seed = np.uint64(seed)
    first_key0, first_key1 = np.uint32(seed), np.uint32(seed >> _HALF_WORD)
    position, prompt, choice = np.uint32(position), np.uint32(prompt), np.uint32(choice)
    for block in range(out.shape[0]):
        c0, c1, c2, c3 = np.uint32(first_block + block), position, prompt, choice
        key0, key1 = first_key0, first_key1
        for _ in range(NUM_ROUNDS):
            product0 = np.uint64(c0) * _MULTIPLIER_0
            product1 = np.uint64(c2) * _MULTIPLIER_1
            c0 = np.uint32(product1 >> _HALF_WORD) ^ c1 ^ key0
            c2 = np.uint32(product0 >> _HALF_WORD) ^ c3 ^ key1
            c1, c3 = np.uint32(product1), np.uint32(product0)
            key0, key1 = np.uint32(key0 + _KEY_STEP_0), np.uint32(key1 + _KEY_STEP_1)
        out[block, 0] = max((np.float32(c0) + _HALF) * _SCALE, _LOWEST)
        out[block, 1] = max((np.float32(c1) + _HALF) * _SCALE, _LOWEST)
        out[block, 2] = max((np.float32(c2) + _HALF) * _SCALE, _LOWEST)
        out[block, 3] = max((np.float32(c3) + _HALF) * _SCALE, _LOWEST)
