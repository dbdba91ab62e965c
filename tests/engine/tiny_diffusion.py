"""Diffusion models for tests, and plain loops that say what they must write, without any cache."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from engine.engine_config import EMBEDDED
from engine.models.attention import PAGED_ATTENTION
from engine.models.causal_lm import CausalLM
from engine.models.diffusion_lm import ContextKind, DiffusionConfig, DiffusionLM
from engine.models.loader import load_models
from engine.request.options import GenerationOptions
from engine.request.sampling_params import SamplingParams
from engine.request.tokenizer import Tokenizer
from tests.engine.engines import CPU, Ask, Result, TinyModels, tokens
from tests.engine.tiny_models import VOCAB_SIZE, tiny_qwen3

MASK = VOCAB_SIZE - 1
KINDS = {
    "llada": DiffusionConfig(MASK, logit_shift=False, context=ContextKind.BIDIRECTIONAL),
    "dream": DiffusionConfig(MASK, logit_shift=True, context=ContextKind.BIDIRECTIONAL),
    "sdar": DiffusionConfig(MASK, False, ContextKind.BLOCK_CAUSAL, block_length=4),
    "fast_dllm": DiffusionConfig(MASK, True, ContextKind.BLOCK_CAUSAL, block_length=8),
    "ours": DiffusionConfig(MASK, logit_shift=True, context=ContextKind.CAUSAL),
}
T = TypeVar("T")

GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
SAMPLED = replace(GREEDY, temperature=1.0, seed=11)
THRESHOLD = 0.25
"""A confidence that random weights reach now and then."""


def tiny_diffusion(
    models: TinyModels, config: DiffusionConfig, *, num_layers: int = 3
) -> TinyModels:
    """The tiny verifier beside a diffusion model of random weights, and no drafter.

    Weights this large make it sure of some masks and unsure of others.
    """
    diffusion = _random_diffusion(
        config, seed=3, num_hidden_layers=num_layers, initializer_range=0.3
    )
    return replace(models, drafter=None, drafter_path=None, diffusion=diffusion)


def twin_diffusion(models: TinyModels, config: DiffusionConfig) -> TinyModels:
    """Beside verifier and drafter a diffusion model of the verifier's own weights.

    A shifted one agrees with the verifier now and then, so that some of its drafts are accepted.
    """
    model: Any = tiny_qwen3(initializer_range=0.06)
    model.set_attn_implementation(PAGED_ATTENTION)
    return replace(models, diffusion=DiffusionLM(CausalLM(model), config))


def load_shipped() -> TinyModels:
    """The verifier that ships, with its diffusion model instead of its drafter."""
    folder = EMBEDDED / "verifier"
    found = load_models(str(folder), None, str(EMBEDDED / "diffusion"), torch.float32, CPU)
    assert found.verifier is not None
    return TinyModels(found.verifier, None, Tokenizer(folder), folder, None, found.diffusion)


def drafting_diffusion(context: ContextKind = ContextKind.CAUSAL) -> DiffusionLM:
    """As unsure as the tiny verifier: of what it drafts some is accepted and some refused."""
    config = DiffusionConfig(MASK, logit_shift=True, context=context)
    return _random_diffusion(config, seed=7, initializer_range=0.06)


def _random_diffusion(config: DiffusionConfig, seed: int, **changes: object) -> DiffusionLM:
    model: Any = tiny_qwen3(seed, **changes)
    model.set_attn_implementation(PAGED_ATTENTION)
    return DiffusionLM(CausalLM(model), config)


def by_reference(models: TinyModels, write: Callable[..., T], *args: object) -> T:
    """What a loop of `engine.training.denoise` gives on the diffusion model."""
    assert models.diffusion is not None
    model: Any = models.diffusion.backbone.model
    model.set_attn_implementation("sdpa")
    try:
        return write(model, *args)
    finally:
        model.set_attn_implementation(PAGED_ATTENTION)


def plain_logits(models: TinyModels, text: Seq[int], block_start: int) -> Tensor:
    """One forward over the whole text, masks and all: row p of [L, V] is for position p."""
    assert models.diffusion is not None
    config, backbone = models.diffusion.config, models.diffusion.backbone
    visible = config.visible(len(text), block_start)
    with torch.inference_mode():
        logits = backbone.eager_logits(torch.tensor([text]), visible)[0].float()
        logits[:, config.mask_token_id] = -torch.inf
    backbone.model.set_attn_implementation(PAGED_ATTENTION)  # type: ignore[operator]
    return logits.roll(1, 0) if config.logit_shift else logits


def plain_denoise(
    models: TinyModels, text: list[int], start: int, end: int, threshold: float
) -> int:
    """Reveal the masks of text[start:end] in place, as `generate` of LLaDA does; count forwards.

    The block-causal and causal models' context is what they are told it is, without any cache.
    """
    assert models.diffusion is not None
    context = models.diffusion.config.context
    num_forwards = 0
    while masks := [p for p in range(start, end) if text[p] == MASK]:
        seen = text if context is ContextKind.BIDIRECTIONAL else text[:end]
        anchor = start - 1 if context is ContextKind.CAUSAL else start
        probability, best = plain_logits(models, seen, anchor).softmax(-1).max(-1)
        surest = max(masks, key=lambda p: float(probability[p]))
        for p in masks:
            if p == surest or probability[p] >= threshold:
                text[p] = int(best[p])
        num_forwards += 1
    return num_forwards


def plain_semi_ar(
    models: TinyModels, prompt: Seq[int], length: int, block_length: int, threshold: float
) -> tuple[list[int], int]:
    """The whole canvas of masks, and its blocks from left to right; tokens and forwards."""
    assert models.diffusion is not None
    is_aligned = models.diffusion.config.context is ContextKind.BLOCK_CAUSAL
    text = [*prompt, *[MASK] * length]
    first = len(prompt) - len(prompt) % block_length if is_aligned else len(prompt)
    num_forwards = sum(
        plain_denoise(models, text, start, min(start + block_length, len(text)), threshold)
        for start in range(first, len(text), block_length)
    )
    return text[len(prompt) :], num_forwards


def semi_ar_asks(
    kind: TinyModels, params: SamplingParams = SAMPLED, **options: object
) -> list[Ask]:
    """Prompts of several lengths, for blocks that the model can have."""
    assert kind.diffusion is not None
    knobs = {} if kind.diffusion.config.block_length else {"block_length": 6}
    chosen = GenerationOptions(**{**knobs, "confidence_threshold": THRESHOLD, **options})  # type: ignore[arg-type]
    return [
        Ask(tokens(count, count), params, "semi_ar", options=chosen, choice=count)
        for count in (3, 8, 21)
    ]


def num_forwards(result: Result) -> int:
    assert result.summary is not None
    return result.summary.num_forwards
