"""Which checkpoints the CPU kernels multiply in bfloat16, where nobody says how to."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import torch

from engine.models.checkpoint import read_config
from engine.models.cpu_kernels import why_no_numba

_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})


def has_products(dtype: torch.dtype) -> bool:
    """Whether the kernels have products of models in that type on this CPU."""
    if why_no_numba() is not None:
        return False
    from engine.models.cpu.weights import can_multiply_in

    return can_multiply_in(dtype)


def are_served_in_bfloat16(folders: Seq[Path], page_size: int | None) -> bool:
    """Whether all of these checkpoints are in bfloat16, and the kernels compute them so here.

    By their config.json alone, because it is asked before they are loaded; in doubt they are not.
    """
    if not has_products(torch.bfloat16):
        return False
    from engine.models.cpu.attention import BLOCK

    are_whole_blocks = (page_size or BLOCK) % BLOCK == 0
    return are_whole_blocks and all(_is_known(read_config(folder)) for folder in folders)


def _is_known(raw: dict[str, Any]) -> bool:
    from engine.models.cpu.packed_model import STATIC_ROTATIONS
    from engine.models.cpu.product import PANEL

    rotation = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rotation.get("rope_type", rotation.get("type", "default"))
    others = ("attention_bias", "mlp_bias", "quantization_config")
    return (
        raw.get("dtype", raw.get("torch_dtype")) == "bfloat16"
        and raw.get("model_type") in _FAMILIES
        and raw.get("hidden_act") == "silu"
        and kind in STATIC_ROTATIONS
        and not any(raw.get(name) for name in others)
        and all(size % PANEL == 0 for size in _sizes(raw))
        and ("dflash_config" not in raw or _is_plain_drafter(raw))
    )


def _sizes(raw: dict[str, Any]) -> tuple[int, int]:
    hidden: int = raw["hidden_size"]
    return hidden, raw.get("head_dim") or hidden // raw["num_attention_heads"]


def _is_plain_drafter(raw: dict[str, Any]) -> bool:
    kinds = raw.get("layer_types") or ()
    return "sliding_attention" not in kinds and not raw.get("is_causal")
