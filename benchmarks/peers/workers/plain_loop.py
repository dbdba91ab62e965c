"""The plain LLaDA loop: one canvas, one token a step, a forward over everything, no cache.

Written from the algorithm (arXiv 2502.09992, low-confidence remasking, temperature 0, as many steps
as tokens). Our diffusion model has learnt a causal prompt and a canvas whose rows see each other
and the prompt, each row predicting the token after it; so that is what it is shown. Bidirectional
attention inside the prompt, as LLaDA has it, costs the same and is nothing that it knows.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.peers.workers.lines import Lines

MASK_ID = 3


@torch.inference_mode()
def write_canvas(model: Any, prompt: list[int], num_tokens: int) -> list[int]:
    """The tokens that follow the prompt; `num_tokens` forwards of prompt and canvas."""
    first = len(prompt)
    tokens = torch.tensor([prompt + [MASK_ID] * num_tokens])
    visible = seen_by_row(first, num_tokens)
    for _ in range(num_tokens):
        hidden = model.model(input_ids=tokens, attention_mask=visible, use_cache=False)[0]
        logits = model.lm_head(hidden[0, first - 1 : -1]).float()
        logits[:, MASK_ID] = -torch.inf
        probability, best = logits.softmax(-1).max(-1)
        is_masked = tokens[0, first:] == MASK_ID
        place = torch.where(is_masked, probability, -1.0).argmax()
        tokens[0, first + place] = best[place]
    written: list[int] = tokens[0, first:].tolist()
    return written


def seen_by_row(num_prompt: int, num_canvas: int) -> Tensor:
    """[1, 1, L, L]: True where a row sees another; the prompt's last row is the canvas's first."""
    length = num_prompt + num_canvas
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    visible[num_prompt - 1 :] = True
    return visible[None, None]


def main() -> None:
    lines = Lines()
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    lines.serve(lambda prompts, count: [write_canvas(model, ids, count) for ids in prompts])


if __name__ == "__main__":
    main()
