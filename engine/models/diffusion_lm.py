"""Diffusion language models: a transformers backbone, a mask token, and what a row may see."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from engine.models.causal_lm import CausalLM, UnsupportedModelError, load_causal_lm


class ContextKind(StrEnum):
    """How the tokens before a block see each other, and with that what their KV depends on."""

    CAUSAL = "causal"  # each sees those before it: KV is a function of the prefix
    BLOCK_CAUSAL = "block_causal"  # blocks of one length, both ways inside a block
    BIDIRECTIONAL = "bidirectional"  # everything sees everything: KV is never final


@dataclass(frozen=True)
class DiffusionConfig:
    """What makes a causal backbone a diffusion model."""

    mask_token_id: int
    logit_shift: bool  # row i predicts token i + 1, as in the causal LM that it was made from
    context: ContextKind
    block_length: int | None = None  # that it was trained for; None: any

    @property
    def kv_is_prefix_function(self) -> bool:
        """Whether a context's KV may be shared by all that have the same prefix."""
        return self.context is ContextKind.CAUSAL


class DiffusionLM:
    """A causal LM's weights read in blocks; which rows see which is said by the spans."""

    def __init__(self, backbone: CausalLM, config: DiffusionConfig) -> None:
        self.backbone = backbone
        self.config = config

    @property
    def vocab_size(self) -> int:
        return self.backbone.vocab_size


def is_diffusion_lm(path: Path) -> bool:
    """Whether a folder holds a diffusion model, by its config.json alone."""
    config = path / "config.json"
    return config.is_file() and "diffusion_config" in json.loads(config.read_text("utf-8"))


def load_diffusion_lm(path: Path, *, dtype: torch.dtype, device: torch.device) -> DiffusionLM:
    """Load a folder whose config.json has a `diffusion_config`, as `dfastllm train` writes it."""
    raw = json.loads((path / "config.json").read_text("utf-8"))
    own: dict[str, Any] | None = raw.get("diffusion_config")
    if own is None:
        raise UnsupportedModelError(f"{path} holds no diffusion model: no diffusion_config")
    config = DiffusionConfig(
        mask_token_id=own["mask_token_id"],
        logit_shift=own["logit_shift"],
        context=ContextKind(own["context"]),
    )
    return DiffusionLM(load_causal_lm(path, dtype=dtype, device=device), config)
