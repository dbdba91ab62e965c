"""Gumbel noise as a pure function of (seed, prompt, choice, position, token): our own Philox.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), Philox-4x32-10. The
integers are equal bit for bit on every device; only the two logarithms are the device's own.
"""

from __future__ import annotations

from enum import IntEnum, unique

import torch
from torch import Tensor

Words = tuple[Tensor, Tensor, Tensor, Tensor]

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
NUM_ROUNDS = 10
MAX_CHOICE = 1 << 16  # choice and denoising step share one 32-bit word
LOW_32 = 0xFFFFFFFF


@unique
class NoiseStream(IntEnum):
    """What is drawn at one position independently of each other: values of `steps`.

    A canvas counts its denoising steps up from 0 and never comes near the next of them.
    """

    TOKEN = 0  # of drafter and verifier alike: what the coupled rule shares
    RENOISING = MAX_CHOICE // 2  # tokens drawn blindly, and as many numbers more as there are steps
    REMASKING = MAX_CHOICE - 3
    RESIDUAL = MAX_CHOICE - 2  # the token after a draft under the rule of p/q
    ACCEPT = MAX_CHOICE - 1


# A CPU is fastest while the six work buffers stay in its cache; a GPU wants everything at once.
CPU_COUNTERS_AT_ONCE = 1 << 15

# Numbers as tensors without dimensions, which work beside tensors of every device: a Python number
# is made into one in each of a hundred small operations (measured: 10 to 20 % of the time).
_MULTIPLIER_0, _MULTIPLIER_1 = (torch.tensor(number) for number in MULTIPLIERS)
_LOW_32, _HALF = torch.tensor(LOW_32), torch.tensor(32)


def gumbel(
    seeds: Tensor,
    prompt_indices: Tensor,
    choices: Tensor,
    positions: Tensor,
    vocab_size: int,
    steps: Tensor | None = None,
) -> Tensor:
    """Standard Gumbel noise, [R] int64 each -> [R, V] float32.

    Entry v of a row depends on that row's numbers and on v alone: not on R, V or other rows.
    `steps` is for canvas modes, which draw more than once at a position.
    """
    streams = choices if steps is None else choices + steps * MAX_CHOICE
    num_blocks = (vocab_size + 3) // 4
    noise = torch.empty(len(seeds), num_blocks, 4, dtype=torch.float32, device=seeds.device)
    rows_at_once = max(1, len(seeds))
    if seeds.device.type == "cpu":
        rows_at_once = max(1, CPU_COUNTERS_AT_ONCE // num_blocks)
    for start in range(0, len(seeds), rows_at_once):
        rows = slice(start, start + rows_at_once)
        counter = _counter(num_blocks, positions[rows], prompt_indices[rows], streams[rows])
        for lane, word in enumerate(philox(counter, seeds[rows, None])):
            noise[rows, :, lane].copy_(word)
        _gumbel_from_integers_(noise[rows])
    return noise.flatten(1)[:, :vocab_size]


def uniform(
    seeds: Tensor, prompt_indices: Tensor, choices: Tensor, positions: Tensor, steps: Tensor
) -> Tensor:
    """One number in (0, 1) a row, [R] int64 each -> [R] float32: the first lane of the row's noise.

    Dense near 0, where an acceptance test with a small probability is decided, and never 1.
    """
    streams = choices + steps * MAX_CHOICE
    counter = _counter(1, positions, prompt_indices, streams)
    word = philox(counter, seeds[:, None])[0].squeeze(1)
    return word.float().add_(0.5).mul_(2.0**-32).clamp_(max=1.0 - 2.0**-24)


def integers(
    seeds: Tensor,
    prompt_indices: Tensor,
    choices: Tensor,
    positions: Tensor,
    steps: Tensor,
    end: int,
) -> Tensor:
    """A number in [0, end) a row, all as likely to within end / 2^32: [R] int64 each -> [R]."""
    counter = _counter(1, positions, prompt_indices, choices + steps * MAX_CHOICE)
    return (philox(counter, seeds[:, None])[0].squeeze(1) * end) >> 32


def philox(counter: Words, key: Tensor) -> Words:
    """Philox-4x32-10 of a broadcastable 4x32-bit counter under a 64-bit key, all int64 tensors.

    A round is (c0, c1, c2, c3) -> (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)).
    c1 and c3 keep their products' upper halves, which no xor below lets through to the end; that
    saves two of twelve passes. Products wrap around in int64, which leaves both halves right.
    """
    keys = _round_keys(key)
    state = counter
    for round_key in keys[:2]:  # shapes still grow here: a block's number meets a row's numbers
        state = _broadcasting_round(state, *round_key)
    shape = state[0].shape  # after two rounds it has met all words but c1, and every key
    c0, c1, c2, c3 = (word.expand(shape).contiguous() for word in state)
    product0, product1 = torch.empty_like(c0), torch.empty_like(c0)
    for key0, key1 in keys[2:]:
        torch.mul(c0, _MULTIPLIER_0, out=product0)
        torch.mul(c2, _MULTIPLIER_1, out=product1)
        _mix_(c0, product1, c1, key0)
        _mix_(c2, product0, c3, key1)
        c1, c3, product0, product1 = product1, product0, c3, c1
    return c0, c1.bitwise_and_(LOW_32), c2, c3.bitwise_and_(LOW_32)


def _mix_(out: Tensor, product: Tensor, word: Tensor, key: Tensor) -> None:
    """out = hi(product) ^ word ^ key, 32 clean bits."""
    torch.bitwise_right_shift(product, _HALF, out=out)
    out.bitwise_xor_(word).bitwise_xor_(key).bitwise_and_(_LOW_32)


def _broadcasting_round(state: Words, key0: Tensor, key1: Tensor) -> Words:
    c0, c1, c2, c3 = state
    product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
    mixed0 = ((product1 >> 32) ^ (c1 ^ key0)) & LOW_32
    mixed2 = ((product0 >> 32) ^ (c3 ^ key1)) & LOW_32
    return mixed0, product1, mixed2, product0


def _round_keys(key: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The key of every round; sums may pass 32 bits, the mask in each round cuts them."""
    number = torch.arange(NUM_ROUNDS, device=key.device).view(-1, *([1] * key.dim()))
    low = (key & LOW_32) + number * KEY_STEPS[0]
    high = ((key >> 32) & LOW_32) + number * KEY_STEPS[1]
    return list(zip(low.unbind(0), high.unbind(0), strict=True))


def _counter(num_blocks: int, positions: Tensor, prompts: Tensor, streams: Tensor) -> Words:
    blocks = torch.arange(num_blocks, device=positions.device)[None, :]
    return blocks, positions[:, None], prompts[:, None], streams[:, None]


def _gumbel_from_integers_(noise: Tensor) -> Tensor:
    """In place: integers below 2^32 -> u in (0, 1) -> -log(-log(1 - u)).

    Written with log1p(-u), because the winners of an argmax have u near 0, where a float32 is
    dense; with log(u) they would sit near 1, 2^-24 apart, and rare tokens would tie. The clamp
    touches 1 draw in 2^25, where the noise is near its minimum and wins nothing.
    """
    noise.add_(0.5).mul_(-(2.0**-32)).clamp_(min=-(1.0 - 2.0**-24))
    return noise.log1p_().neg_().log_().neg_()
