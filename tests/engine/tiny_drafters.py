"""A tiny DFlash drafter in z-lab's published layout, and its published equations.

Config keys as in z-lab/dflash (tests/fixtures, dflash/model.py) and z-lab/Qwen3.6-27B-DFlash.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.engine.test_dflash import norm
from tests.engine.tiny_models import SHAPE, VOCAB_SIZE

MASK, BLOCK, WINDOW, LAYERS = VOCAB_SIZE - 1, 4, 7, 3
SIZES: dict[str, Any] = {
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
}
PUBLISHED: dict[str, Any] = SIZES | {
    "architectures": ["DFlashDraftModel"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "block_size": BLOCK,
    "bos_token_id": 1,
    "dflash_config": {"mask_token_id": MASK, "target_layer_ids": [0, 2]},
    "dtype": "bfloat16",
    "eos_token_id": 2,
    "initializer_range": 0.02,
    "max_window_layers": 5,
    "model_type": "qwen3",
    "num_target_layers": SHAPE["num_hidden_layers"],
    "rope_scaling": None,
    "rope_theta": 10000000,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": VOCAB_SIZE,
}
SLIDING = {
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "sliding_window": WINDOW,
    "use_sliding_window": True,
}
BOTH_WAYS = SLIDING | {"is_causal": False}


def drafter_tensors(bias: bool = False) -> dict[str, Tensor]:
    wanted: dict[str, tuple[int, ...]] = {"fc.weight": (64, 128), "hidden_norm.weight": (64,)}
    wanted["norm.weight"] = (64,)
    linears = {"q_proj": (64, 64), "k_proj": (32, 64), "v_proj": (32, 64), "o_proj": (64, 64)}
    for layer in range(LAYERS):
        for name, shape in linears.items():
            wanted[f"layers.{layer}.self_attn.{name}.weight"] = shape
            if bias:
                wanted[f"layers.{layer}.self_attn.{name}.bias"] = shape[:1]
        for name in ("q_norm", "k_norm"):
            wanted[f"layers.{layer}.self_attn.{name}.weight"] = (16,)
        for name, shape in {"gate": (96, 64), "up": (96, 64), "down": (64, 96)}.items():
            wanted[f"layers.{layer}.mlp.{name}_proj.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            wanted[f"layers.{layer}.{name}.weight"] = (64,)
    generator = torch.Generator().manual_seed(0)
    return {
        name: float(len(shape) == 1 and "bias" not in name)
        + 0.25 * torch.randn(shape, generator=generator)
        for name, shape in wanted.items()
    }


def visible(raw: dict[str, Any], layer: int, queries: Tensor, keys: Tensor) -> Tensor:
    """Which of the keys [K] the queries [Q, 1] see in a layer: z-lab's `_attention_mask`."""
    slides = raw.get("layer_types", ["full_attention"] * LAYERS)[layer] == "sliding_attention"
    causal = slides if raw.get("is_causal") is None else raw["is_causal"]
    seen = torch.ones(len(queries), len(keys), dtype=torch.bool)
    if slides:
        seen &= (queries - keys).abs() < raw["sliding_window"]
    if causal:
        seen &= keys <= queries
    return seen


def published_hidden(
    w: dict[str, Tensor],
    raw: dict[str, Any],
    tapped: Tensor,
    embeds: Tensor,
    turn: Callable[[Tensor], Tensor],
) -> Tensor:
    """What z-lab's model.py computes for one block after `tapped`, layer by layer."""
    anchor, size = len(tapped), len(embeds)
    context = norm(tapped @ w["fc.weight"].T, w["hidden_norm.weight"])
    queries, keys = torch.arange(anchor, anchor + size)[:, None], torch.arange(anchor + size)
    x = embeds
    for layer in range(LAYERS):
        own = {
            k.removeprefix(f"layers.{layer}."): v for k, v in w.items() if f"layers.{layer}." in k
        }

        def project(rows: Tensor, name: str, own: dict[str, Tensor] = own) -> Tensor:
            out = rows @ own[f"self_attn.{name}_proj.weight"].T
            return out + own.get(f"self_attn.{name}_proj.bias", torch.zeros(()))

        normed = norm(x, own["input_layernorm.weight"])
        rows = torch.cat((context, normed))
        q, k, v = (
            project(part, name).view(len(part), -1, 16)
            for part, name in ((normed, "q"), (rows, "k"), (rows, "v"))
        )
        k = turn(norm(k, own["self_attn.k_norm.weight"]))
        q = norm(q, own["self_attn.q_norm.weight"])
        q = turn(torch.cat((torch.zeros(anchor, *q.shape[1:]), q)))[anchor:]
        seen = visible(raw, layer, queries, keys)
        mixed = F.scaled_dot_product_attention(
            q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), seen, enable_gqa=True
        )
        x = x + project(mixed.transpose(0, 1).flatten(1), "o")
        y = norm(x, own["post_attention_layernorm.weight"])
        gate = F.silu(y @ own["mlp.gate_proj.weight"].T) * (y @ own["mlp.up_proj.weight"].T)
        x = x + gate @ own["mlp.down_proj.weight"].T
    return norm(x, w["norm.weight"])
