"""Reference decoding of a block-diffusion model: clear, and without any cache.

The model card is written with it, and the modes of the server are tested against it.

All ways of generating are one: a block of tokens and masks after a context, from which the most
certain masks are revealed until none is left.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.training.block_forward import read_blocks
from engine.training.tokenizer import MASK_ID


@dataclass(frozen=True)
class Written:
    """What was generated, and in how many forward passes (nfe)."""

    token_ids: list[int]
    num_forwards: int


@torch.no_grad()
def block_logits(model: Any, context: list[int], block: list[int]) -> Tensor:
    """Logits [N, V] for the N tokens after the context; its last token is the block's anchor."""
    device = model.device
    tokens = torch.tensor([context], device=device)
    anchor = torch.tensor([[len(context) - 1]], device=device)
    _, hidden = read_blocks(model, tokens, anchor, torch.tensor([[block]], device=device))
    return without_mask(model.lm_head(hidden[0, 0]))


def without_mask(logits: Tensor) -> Tensor:
    """[..., V]: a mask is never an answer."""
    logits = logits.float()
    logits[..., MASK_ID] = -torch.inf
    return logits


def draft(model: Any, context: list[int], length: int) -> list[int]:
    """DEER's draft (arXiv 2512.15176): all masks, one pass, every token from its own marginal."""
    drafted: list[int] = block_logits(model, context, [MASK_ID] * length).argmax(-1).tolist()
    return drafted


def denoise(model: Any, context: list[int], block: list[int], threshold: float) -> Written:
    """Reveal all masks of a block, in any order.

    A pass reveals every mask whose probability reaches the threshold (Fast-dLLM, arXiv 2505.22618,
    section 3.3), or else the most probable one: at 1.0 it is one token a pass.
    """
    tokens = torch.tensor(block)
    num_forwards = 0
    while (tokens == MASK_ID).any():
        probability, best = block_logits(model, context, tokens.tolist()).softmax(-1).max(-1)
        confidence = torch.where(tokens == MASK_ID, probability.cpu(), -1.0)
        revealed = (tokens == MASK_ID) & (confidence >= threshold)
        revealed[confidence.argmax()] = True
        tokens = torch.where(revealed, best.cpu(), tokens)
        num_forwards += 1
    return Written(tokens.tolist(), num_forwards)


def canvas(model: Any, prompt: list[int], length: int, threshold: float) -> Written:
    """The whole answer as one block (LLaDA's pure diffusion, arXiv 2502.09992)."""
    return denoise(model, prompt, [MASK_ID] * length, threshold)


def infill(
    model: Any, prefix: list[int], length: int, suffix: list[int], threshold: float
) -> Written:
    """The tokens between prefix and suffix; the suffix is part of the block."""
    block = [MASK_ID] * length + suffix
    written = denoise(model, prefix, block, threshold)
    return Written(written.token_ids[:length], written.num_forwards)


def semi_ar(
    model: Any,
    prompt: list[int],
    new_tokens: int,
    block_length: int,
    threshold: float,
    stop: frozenset[int] = frozenset(),
) -> Written:
    """Blocks from left to right, diffusion inside each, up to and with the first stop token."""
    answer: list[int] = []
    num_forwards = 0
    while len(answer) < new_tokens:
        length = min(block_length, new_tokens - len(answer))
        block = denoise(model, prompt + answer, [MASK_ID] * length, threshold)
        num_forwards += block.num_forwards
        for token in block.token_ids:
            answer.append(token)
            if token in stop:
                return Written(answer, num_forwards)
    return Written(answer, num_forwards)
