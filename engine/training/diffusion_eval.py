"""How well a diffusion model denoises, drafts without the verifier, and still is a causal model."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from engine.training import denoise
from engine.training.acceptance import Text
from engine.training.block_forward import read_blocks
from engine.training.documents import Document
from engine.training.drafts import Bias
from engine.training.evaluate import committed_by_source
from engine.training.frozen_verifier import FrozenVerifier, Reading
from engine.training.perplexity import perplexity_by_source
from engine.training.tokenizer import MASK_ID, STOP_IDS

DRAFT_LENGTH = 7  # what the DFlash drafter beside it drafts
BLOCK_LENGTH = 32
HOLE_LENGTH = 8
MASK_RATIOS = (0.25, 0.5, 0.75, 1.0)
ROW_LENGTH = 512  # of a held-out document
SEMI_AR = ((8, 0.9), (32, 0.9), (32, 0.6))  # block length, threshold
SEMI_AR_TOKENS = 64


class DiffusionProposer:
    """DEER's stand-alone drafter: masks after the committed tokens, nothing of the verifier's."""

    taps: tuple[int, ...] = ()
    markov: Bias | None = None

    def __init__(self, model: Any, num_drafts: int = DRAFT_LENGTH) -> None:
        self._model, self.num_drafts = model, num_drafts

    def blocks(self, reading: Reading, anchors: Tensor) -> Tensor:
        masks = anchors.new_full((*anchors.shape, self.num_drafts), MASK_ID)
        return read_blocks(self._model, reading.token_ids, anchors, masks)[1]

    def head(self, hidden: Tensor) -> Tensor:
        return denoise.without_mask(self._model.lm_head(hidden))


def evaluate_diffusion(
    model: Any,
    verifier: FrozenVerifier,
    documents: list[Document],
    tokenizer: Tokenizer,
    max_length: int,
    answers: dict[float, list[Text]],
    seed: int,
) -> dict[str, Any]:
    """All figures of the diffusion model, by what is measured; `answers` are the verifier's."""
    causal = perplexity_by_source(FrozenVerifier(model), documents, tokenizer, max_length)
    texts = next(iter(answers.values()))
    step = max(1, len(documents) // len(texts))
    rows = [tokenizer.encode(d.render()).ids[:ROW_LENGTH] for d in documents[::step]]
    prompts = [text.prompt for text in texts[:: len(SEMI_AR) * 2]]
    return {
        "perplexity": {name: round(p.perplexity, 3) for name, p in causal.items()},
        "masked_nats": masked_nats(model, rows, seed),
        "semi_ar": semi_ar_figures(model, verifier, prompts),
    } | committed_by_source(verifier, DiffusionProposer(model), answers)


@torch.inference_mode()
def masked_nats(model: Any, rows: Sequence[list[int]], seed: int) -> dict[str, float]:
    """Mean surprise of a masked token in blocks of 32, by the share of the block that is masked.

    Beside the shares: the first 8 tokens with the rest of the block shown (`hole`: infilling), and
    the same tokens with nothing after them shown (`no_suffix`).
    """
    generator = torch.Generator().manual_seed(seed)
    totals: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for ids in rows:
        if len(ids) <= BLOCK_LENGTH:
            continue
        tokens = torch.tensor(ids)
        anchors = torch.arange(0, len(ids) - BLOCK_LENGTH, BLOCK_LENGTH)
        true = tokens[anchors[:, None] + 1 + torch.arange(BLOCK_LENGTH)]
        for name, (masked, asked) in _patterns(len(anchors), generator).items():
            blocks = true.masked_fill(masked, MASK_ID).to(model.device)
            at, row = anchors[None].to(model.device), tokens[None].to(model.device)
            hidden = read_blocks(model, row, at, blocks[None])[1][0]
            logits = denoise.without_mask(model.lm_head(hidden[asked.to(model.device)]))
            nats = F.cross_entropy(logits, true[asked].to(model.device), reduction="sum")
            totals[name][0] += int(asked.sum())
            totals[name][1] += nats.item()
    return {name: round(nats / count, 3) for name, (count, nats) in totals.items()}


def _patterns(blocks: int, generator: torch.Generator) -> dict[str, tuple[Tensor, Tensor]]:
    """By name: which tokens of each block are masked, and which of those count, [A, N] each."""
    rank = torch.rand(blocks, BLOCK_LENGTH, generator=generator).argsort(-1).argsort(-1)
    found = {}
    for ratio in MASK_RATIOS:
        masked = rank < round(ratio * BLOCK_LENGTH)
        found[f"{ratio:g}"] = (masked, masked)
    hole = torch.arange(BLOCK_LENGTH).expand(blocks, -1) < HOLE_LENGTH
    return found | {"hole": (hole, hole), "no_suffix": (torch.ones_like(hole), hole)}


def semi_ar_figures(
    model: Any, verifier: FrozenVerifier, prompts: Sequence[list[int]]
) -> list[dict[str, float]]:
    """Tokens a forward pass, and what the verifier thinks of them: its mean surprise."""
    figures = []
    for block_length, threshold in SEMI_AR:
        num_tokens, num_forwards, nats = 0, 0, 0.0
        for prompt in prompts:
            written = denoise.semi_ar(
                model, prompt, SEMI_AR_TOKENS, block_length, threshold, STOP_IDS
            )
            num_tokens += len(written.token_ids)
            num_forwards += written.num_forwards
            nats += surprise(verifier, prompt, written.token_ids)
        figures.append(
            {
                "block_length": block_length,
                "threshold": threshold,
                "tokens_a_forward": round(num_tokens / max(1, num_forwards), 3),
                "verifier_perplexity": round(math.exp(nats / max(1, num_tokens)), 3),
            }
        )
    return figures


@torch.inference_mode()
def surprise(verifier: FrozenVerifier, prompt: list[int], answer: list[int]) -> float:
    """Nats that the verifier gives to the whole answer."""
    tokens = torch.tensor([prompt + answer], device=verifier.device)
    hidden = verifier.read(tokens, (0,)).hidden[0, len(prompt) - 1 : -1]
    logits = verifier.target_logits(hidden)
    return F.cross_entropy(logits, tokens[0, len(prompt) :], reduction="sum").item()
