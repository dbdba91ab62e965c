"""Diffusion language models: a transformers backbone, a mask token, and what a row may see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.models.causal_lm import CausalLM, load_causal_lm
from engine.models.checkpoint import UnsupportedModelError, read_config, read_tensors
from engine.models.families import (
    CANVAS_TYPE,
    DIFFUSION_KEY,
    FAMILIES,
    CheckpointKind,
    ContextKind,
    Family,
    checkpoint_kind,
)
from engine.models.pretrained import pretrained

__all__ = [
    "ContextKind",
    "DiffusionConfig",
    "DiffusionLM",
    "is_diffusion_lm",
    "load_diffusion_lm",
]


@dataclass(frozen=True)
class DiffusionConfig:
    """What makes a causal backbone a diffusion model."""

    mask_token_id: int
    logit_shift: bool  # row i predicts token i + 1, as in the causal LM that it was made from
    context: ContextKind
    block_length: int | None = None  # that it was trained for; None: any

    def __post_init__(self) -> None:
        if self.context is ContextKind.BLOCK_CAUSAL and self.block_length is None:
            raise UnsupportedModelError("a block-causal model must say its block_length")
        if self.block_length is not None and self.block_length < 1:
            raise UnsupportedModelError(f"block_length is {self.block_length}")

    @property
    def kv_is_prefix_function(self) -> bool:
        """Whether a context's KV may be shared by all that have the same prefix."""
        return self.context is ContextKind.CAUSAL

    def visible(self, length: int, block_start: int) -> Tensor:
        """Which position sees which, [length, length]; the last block begins at `block_start`.

        Which says nothing where blocks are aligned to position 0, or where all see all.
        """
        positions = torch.arange(length)
        if self.context is ContextKind.BIDIRECTIONAL:
            horizon = torch.full_like(positions, length - 1)
        elif self.context is ContextKind.BLOCK_CAUSAL:
            assert self.block_length is not None
            horizon = (positions // self.block_length + 1) * self.block_length - 1
        else:
            horizon = torch.where(positions < block_start, positions, length - 1)
        return positions[None, :] <= horizon[:, None]


class DiffusionLM:
    """A causal LM's weights read in blocks; which rows see which is said by the spans."""

    def __init__(
        self, backbone: CausalLM, config: DiffusionConfig, model_type: str | None = None
    ) -> None:
        self.backbone = backbone
        self.config = config
        self.model_type = model_type or backbone.model_type
        if not 0 <= config.mask_token_id < backbone.vocab_size:
            raise UnsupportedModelError(
                f"{self.model_type}: the mask token {config.mask_token_id} is none of its "
                f"{backbone.vocab_size} tokens"
            )

    @property
    def vocab_size(self) -> int:
        return self.backbone.vocab_size


def is_diffusion_lm(path: Path) -> bool:
    """Whether a folder holds a diffusion model, by its config.json alone."""
    is_folder = (path / "config.json").is_file()
    return is_folder and checkpoint_kind(path) is CheckpointKind.DIFFUSION_LM


def load_diffusion_lm(path: Path, *, dtype: torch.dtype, device: torch.device) -> DiffusionLM:
    """Load a folder of ours (`diffusion_config`) or of a published family (`families.py`)."""
    raw = read_config(path)
    own: dict[str, Any] | None = raw.get(DIFFUSION_KEY)
    if own is not None:
        config = _own_config(own)
        return DiffusionLM(load_causal_lm(path, dtype=dtype, device=device), config)
    kind = raw.get("model_type", "unknown")
    if kind == CANVAS_TYPE:
        raise UnsupportedModelError(
            f"{path} (model_type {kind}) denoises random tokens, not masks: no mode but semi_ar "
            "does that"
        )
    if kind not in FAMILIES:
        raise UnsupportedModelError(
            f"{path} (model_type {kind}) holds no diffusion model: it has no {DIFFUSION_KEY} and "
            f"is none of {', '.join(sorted(FAMILIES))}"
        )
    return _load_family(FAMILIES[kind], raw, path, dtype, device)


def _own_config(own: dict[str, Any]) -> DiffusionConfig:
    try:
        return DiffusionConfig(
            mask_token_id=own["mask_token_id"],
            logit_shift=own["logit_shift"],
            context=ContextKind(own["context"]),
            block_length=own.get("block_length"),
        )
    except (KeyError, ValueError) as error:
        raise UnsupportedModelError(f"{DIFFUSION_KEY}: {error}") from error


def _load_family(
    family: Family, raw: dict[str, Any], path: Path, dtype: torch.dtype, device: torch.device
) -> DiffusionLM:
    kind = raw["model_type"]
    what = f"{path} (model_type {kind})"
    try:
        config = DiffusionConfig(
            mask_token_id=family.mask_id(raw, path),
            logit_shift=family.logit_shift,
            context=family.context,
            block_length=family.trained_block_length(raw),
        )
        backbone_config = family.backbone_config(raw)
    except KeyError as error:
        raise UnsupportedModelError(f"{what}: config.json has no {error}") from error
    model = pretrained(
        path,
        what,
        dtype=dtype,
        device=device,
        config=backbone_config,
        tensors={family.rename(name): tensor for name, tensor in read_tensors(path).items()},
        model_class=family.model_class,
    )
    return DiffusionLM(CausalLM(model), config, kind)
