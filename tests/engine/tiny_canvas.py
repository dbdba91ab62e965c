"""A tiny DiffusionGemma in its published format, and what tests ask of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    EntropyBoundSamplerConfig,
)

from engine.dfastllm_engine import DFastLLMEngine
from engine.models.canvas_lm import load_canvas_lm
from engine.request.options import GenerationOptions
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import (
    CPU,
    Ask,
    Result,
    TinyModels,
    batcher_of,
    check_nothing_leaked,
    tokens,
)
from tests.engine.tiny_models import VOCAB_SIZE
from tests.engine.tiny_tokenizers import make_byte_level

CANVAS, VOCAB = 8, 96
STEPS, LENGTH = 12, 20  # two canvases and a half
PARAMS = SamplingParams(max_tokens=LENGTH, seed=11, ignore_eos=True)
_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 16,
    "num_global_key_value_heads": 1,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "max_position_embeddings": 128,
    "num_experts": 3,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "use_bidirectional_attention": "vision",
}
_VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 8,
    "patch_size": 4,
    "position_embedding_size": 16,
}


def save_canvas(
    folder: Path,
    *,
    vocab_size: int = VOCAB,
    sharpness: float = 1.0,
    mixing: float = 1.0,
    **generation: object,
) -> Path:
    """Random weights; `generation` goes to generation_config.json.

    Logits grow with `sharpness`; with little `mixing` a token says much of its own place, so that a
    canvas comes to rest, and rounding errors do not grow from pass to pass.
    """
    config = DiffusionGemmaConfig(
        text_config=_TEXT | {"vocab_size": vocab_size}, vision_config=_VISION, canvas_length=CANVAS
    )
    model = DiffusionGemmaForBlockDiffusion(config).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in {id(p): p for p in model.parameters()}.values():
        noise = torch.randn(weight.shape, generator=generator)
        weight.data = 0.2 * noise if weight.ndim > 1 else weight.data + 0.2 * noise
    model.model.decoder.norm.weight.data *= sharpness
    model.model.decoder.self_conditioning.down_proj.weight.data *= mixing
    for layer in model.model.decoder.layers:
        layer.post_attention_layernorm.weight.data *= mixing
        layer.post_feedforward_layernorm.weight.data *= mixing
    model.generation_config.update(**generation)
    model.save_pretrained(folder)
    return folder


def save_resting(folder: Path) -> Path:
    """One whose canvases come to rest after some passes, with the tokenizer of the tiny models."""
    save_canvas(
        folder,
        vocab_size=VOCAB_SIZE,
        sharpness=4.0,
        mixing=0.3,
        max_denoising_steps=STEPS,
        sampler_config=EntropyBoundSamplerConfig(1.0),
        confidence_threshold=1.0,
    )
    make_byte_level(folder)
    return folder


def beside(models: TinyModels, folder: Path) -> TinyModels:
    """The tiny verifier beside the canvas model of a folder, and no drafter."""
    canvas = load_canvas_lm(folder, dtype=torch.float32, device=CPU)
    return replace(models, drafter=None, drafter_path=None, canvas=canvas)


def asks_of(params: SamplingParams = PARAMS, **options: Any) -> list[Ask]:
    chosen = GenerationOptions(**options)
    return [
        Ask(tokens(count, count), params, "semi_ar", options=chosen, choice=count)
        for count in (3, 8, 21)
    ]


def num_forwards(result: Result) -> int:
    assert result.summary is not None
    return result.summary.num_forwards


def check_no_state_left(engine: DFastLLMEngine) -> None:
    check_nothing_leaked(engine)
    strategy: Any = batcher_of(engine).strategies["semi_ar"]
    assert not strategy._canvases and not strategy._progress
