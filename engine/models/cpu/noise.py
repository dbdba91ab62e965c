"""Gumbel noise on a CPU: `decoding/noise.py` bit for bit, all but its logarithms in one loop."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engine.decoding.noise import KEY_STEPS, MULTIPLIERS, NUM_ROUNDS
from engine.models.cpu.kernel import inner_kernel, kernel

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
    words = np.empty((4, out.shape[1]), np.uint32)
    for row in range(out.shape[0]):
        number = seeds[row], prompts[row], choices[row], positions[row]
        negated_uniforms(number, 0, words, out[row])


@inner_kernel
def negated_uniforms(number, first_block, words, out):
    """-u of a row's words from block `first_block` on, out: [blocks, 4] float32.

    number: seed, prompt, choice (a denoising step in its upper half) and position; words:
    [4, blocks], room. Round after round over all blocks, because only so LLVM makes vectors.
    """
    seed, num_blocks = np.uint64(number[0]), out.shape[0]
    key0, key1 = np.uint32(seed), np.uint32(seed >> _HALF_WORD)
    c0, c1, c2, c3 = words[0], words[1], words[2], words[3]
    for block in range(num_blocks):
        c0[block], c1[block] = np.uint32(first_block + block), np.uint32(number[3])
        c2[block], c3[block] = np.uint32(number[1]), np.uint32(number[2])
    for _ in range(NUM_ROUNDS):
        for block in range(num_blocks):
            product0 = np.uint64(c0[block]) * _MULTIPLIER_0
            product1 = np.uint64(c2[block]) * _MULTIPLIER_1
            c0[block] = np.uint32(product1 >> _HALF_WORD) ^ c1[block] ^ key0
            c2[block] = np.uint32(product0 >> _HALF_WORD) ^ c3[block] ^ key1
            c1[block], c3[block] = np.uint32(product1), np.uint32(product0)
        key0, key1 = np.uint32(key0 + _KEY_STEP_0), np.uint32(key1 + _KEY_STEP_1)
    for block in range(num_blocks):
        for lane in range(4):
            uniform = (np.float32(words[lane, block]) + _HALF) * _SCALE
            out[block, lane] = max(uniform, _LOWEST)


@inner_kernel
def negated_uniform(number, token):
    """-u of one token's word."""
    seed = np.uint64(number[0])
    key0, key1 = np.uint32(seed), np.uint32(seed >> _HALF_WORD)
    c0, c1 = np.uint32(token // 4), np.uint32(number[3])
    c2, c3 = np.uint32(number[1]), np.uint32(number[2])
    for _ in range(NUM_ROUNDS):
        product0, product1 = np.uint64(c0) * _MULTIPLIER_0, np.uint64(c2) * _MULTIPLIER_1
        c0 = np.uint32(product1 >> _HALF_WORD) ^ c1 ^ key0
        c2 = np.uint32(product0 >> _HALF_WORD) ^ c3 ^ key1
        c1, c3 = np.uint32(product1), np.uint32(product0)
        key0, key1 = np.uint32(key0 + _KEY_STEP_0), np.uint32(key1 + _KEY_STEP_1)
    lane, word = token % 4, np.uint32(c0)
    if lane == 1:
        word = c1
    elif lane == 2:
        word = np.uint32(c2)
    elif lane == 3:
        word = c3
    return max((np.float32(word) + _HALF) * _SCALE, _LOWEST)
