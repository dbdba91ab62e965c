"""Small real checkpoints of the sizes that the CPU kernels take, and texts read from them."""

from __future__ import annotations

import random
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from engine.models.attention import sdpa_backend
from engine.models.cpu.bfloat16 import has_bfloat16_products
from engine.models.dflash import DFlashConfig, DFlashDrafter, save_drafter
from engine.models.diffusion_lm import DiffusionConfig, DiffusionLM
from engine.models.loader import load_pair
from engine.models.model_runner import ModelRunner
from engine.models.packing import Span

VOCAB = 500  # no multiple of a panel's 32 columns, and neither is the intermediate size
MASK = VOCAB - 1
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 80,
    "max_position_embeddings": 640,
    "initializer_range": 0.1,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
WINDOW = 37
SLIDING = {
    "sliding_window": WINDOW,
    "use_sliding_window": True,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
MAKERS: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=True)),
    "qwen3 untied": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=False)),
    "qwen3 with windows": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, **SLIDING)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "llama3": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=LLAMA3)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=WINDOW)),
}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
needs_bfloat16_products = pytest.mark.skipif(
    not has_bfloat16_products(), reason="this CPU has no products in bfloat16 (AVX512-BF16)"
)
IN_BFLOAT16 = pytest.param(("bfloat16", "bfloat16"), marks=needs_bfloat16_products)
STORED_AND_MULTIPLIED = [("bfloat16", "float32"), ("float32", "float32"), IN_BFLOAT16]
"""Types that checkpoints are in, and that their products are."""


def save_kind(folder: Path, kind: str = "qwen3", dtype: str = "float32", seed: int = 0) -> Path:
    """A checkpoint in that type, whose norms are not one and whose biases are not zero."""
    torch.manual_seed(seed)
    model = MAKERS[kind]()
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.5)
    model.to(DTYPES[dtype]).save_pretrained(folder)
    return folder


def save_draft_kind(
    folder: Path, dtype: str = "float32", block_size: int = 8, **changes: Any
) -> Path:
    """A drafter for `save_kind`'s models."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "num_layers": 2,
        "hidden_size": 64,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 32,
        "intermediate_size": 80,
        "vocab_size": VOCAB,
        "mask_token_id": MASK,
        "target_layer_ids": (0, 2),
        "num_target_layers": 3,
        "block_size": block_size,
        "max_position_embeddings": 640,
    }
    drafter = DFlashDrafter(DFlashConfig(**sizes | changes))
    for name, weight in drafter.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    if drafter.markov is not None:  # a fresh one says nothing
        torch.nn.init.normal_(drafter.markov.lm_head.weight, std=0.5)
    save_drafter(drafter, folder, dtype=DTYPES[dtype])
    return folder


def load_runner(
    path: Path,
    drafter_path: Path | None = None,
    *,
    diffusion: DiffusionConfig | None = None,
    page_size: int = 16,
    num_threads: int = 0,
    dtype: str = "float32",
) -> ModelRunner:
    """The models of these folders, through the kernels where there is a thread for them.

    With `diffusion` the verifier's folder holds the backbone of such a model, which alone runs.
    dtype: what they are multiplied in, whatever the folders hold.
    """
    draft = None if drafter_path is None else str(drafter_path)
    verifier, drafter = load_pair(str(path), draft, DTYPES[dtype], torch.device("cpu"))
    runner = ModelRunner(
        None if diffusion else verifier,
        drafter,
        num_pages=1024 // page_size,
        page_size=page_size,
        backend=sdpa_backend,
        diffusion=DiffusionLM(verifier, diffusion) if diffusion else None,
    )
    if num_threads:
        runner.fuse_layers()
        assert runner.use_kernels(num_threads)
        assert runner.uses_kernels
    return runner


def tokens(count: int, seed: int) -> list[int]:
    chooser = random.Random(seed)
    return [chooser.randrange(MASK) for _ in range(count)]


@dataclass(frozen=True)
class Text:
    """A text, and the pages that hold it, in no order."""

    token_ids: list[int]
    page_ids: list[int]

    def span(self, start: int, end: int, visible_end: int | None = None) -> Span:
        return Span(self.token_ids[start:end], start, self.page_ids, visible_end)


def make_texts(lengths: Seq[int], page_size: int = 16) -> list[Text]:
    free = random.Random(5).sample(range(1, 1024 // page_size), 1024 // page_size - 1)
    counts = [-(-length // page_size) for length in lengths]
    return [
        Text(tokens(length, seed), [free.pop() for _ in range(count)])
        for seed, (length, count) in enumerate(zip(lengths, counts, strict=True))
    ]


Plan = Seq[Seq[tuple[int, int]]]
"""Of each forward its spans: which text, and how many tokens more of it."""


def read(runner: ModelRunner, texts: Seq[Text], plan: Plan) -> list[Tensor]:
    """Read texts as planned; the logits of each text's rows, [L, V]."""
    found: list[list[Tensor]] = [[] for _ in texts]
    places = [0] * len(texts)
    for pieces in plan:
        spans = []
        for text, count in pieces:
            spans.append(texts[text].span(places[text], places[text] + count))
            places[text] += count
        counts = [count for _, count in pieces]
        logits = runner.verify(spans, list(range(sum(counts))))
        for (text, _), rows in zip(pieces, logits.split(counts), strict=True):
            found[text].append(rows)
    return [torch.cat(rows) for rows in found]


def eager(path: Path, token_ids: Seq[int], visible: Tensor | None = None) -> Tensor:
    """The logits of transformers' own forward, without pages or kernels."""
    runner = load_runner(path)
    with torch.no_grad():
        return runner.verifier.eager_logits(torch.tensor([list(token_ids)]), visible)[0]
