"""Tiny checkpoints of published diffusion LMs, in their own config keys and tensor names.

And the published equations, once, in plain words: every family here is a pre-norm decoder with
RMSNorm, halves-rotated rope, grouped queries and a SiLU gate, with or without biases on q, k, v and
norms on q, k. What differs otherwise is who sees whom.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

VOCAB, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, MLP, LAYERS = 96, 32, 4, 2, 8, 48, 2
MASK = 90
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Published:
    """A family's config.json and the names that it gives to a decoder's parts."""

    config: dict[str, Any]
    name: Callable[[str, int | None], str]
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    eps: float = 1e-6
    theta: float = 1e6
    kv_heads: int = KV_HEADS

    def tensors(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensors:
        """Random weights; none, norms included, at a value that would hide it."""
        generator = torch.Generator().manual_seed(seed)
        wanted: dict[str, tuple[int, ...]] = {"embed": (VOCAB, HIDDEN), "norm": (HIDDEN,)}
        if not self.tied:
            wanted["head"] = (VOCAB, HIDDEN)
        sizes = {
            "q": HEADS * HEAD_DIM,
            "k": self.kv_heads * HEAD_DIM,
            "v": self.kv_heads * HEAD_DIM,
        }
        per_layer: dict[str, tuple[int, ...]] = {part: (n, HIDDEN) for part, n in sizes.items()}
        per_layer |= {"o": (HIDDEN, HEADS * HEAD_DIM), "gate": (MLP, HIDDEN), "up": (MLP, HIDDEN)}
        per_layer |= {"down": (HIDDEN, MLP), "norm1": (HIDDEN,), "norm2": (HIDDEN,)}
        if self.qkv_bias:
            per_layer |= {f"{part}_bias": (n,) for part, n in sizes.items()}
        if self.qk_norm:
            per_layer |= {"q_norm": (HEAD_DIM,), "k_norm": (HEAD_DIM,)}
        made = {self.name(part, None): shape for part, shape in wanted.items()}
        for layer in range(LAYERS):
            made |= {self.name(part, layer): shape for part, shape in per_layer.items()}
        return {
            name: ((len(shape) == 1) + 0.3 * torch.randn(shape, generator=generator)).to(dtype)
            for name, shape in made.items()
        }

    def save(self, folder: Path, tensors: Tensors, **changes: object) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        config = {k: v for k, v in (self.config | changes).items() if v is not ...}
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    def logits(self, tensors: Tensors, ids: Tensor, visible: Tensor) -> Tensor:
        """The published forward: ids [L], visible [L, L] -> [L, V]."""
        w = tensors
        x = w[self.name("embed", None)][ids]
        for layer in range(LAYERS):
            own = {
                part: w[self.name(part, layer)]
                for part in ("q", "k", "v", "o", "gate", "up", "down", "norm1", "norm2")
            }
            y = rms_norm(x, own["norm1"], self.eps)
            q, k, v = (self._heads(w, part, layer, y) for part in ("q", "k", "v"))
            q, k = (rope(part, self.theta) for part in (q, k))
            mixed = torch.zeros_like(q)
            for head in range(HEADS):
                shared = head // (HEADS // self.kv_heads)
                scores = q[:, head] @ k[:, shared].T * HEAD_DIM**-0.5
                mixed[:, head] = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v[:, shared]
            x = x + mixed.flatten(1) @ own["o"].T
            y = rms_norm(x, own["norm2"], self.eps)
            x = x + (F.silu(y @ own["gate"].T) * (y @ own["up"].T)) @ own["down"].T
        head_name = self.name("embed" if self.tied else "head", None)
        return rms_norm(x, w[self.name("norm", None)], self.eps) @ w[head_name].T

    def _heads(self, w: Tensors, part: str, layer: int, y: Tensor) -> Tensor:
        projected = y @ w[self.name(part, layer)].T
        if self.qkv_bias:
            projected = projected + w[self.name(f"{part}_bias", layer)]
        heads = projected.view(len(y), -1, HEAD_DIM)
        if self.qk_norm and part != "v":
            heads = rms_norm(heads, w[self.name(f"{part}_norm", layer)], self.eps)
        return heads


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def rope(x: Tensor, theta: float, positions: Tensor | None = None) -> Tensor:
    """[L, H, D], every pair (i, i + D / 2) of row p turned by p * theta ** (-2 i / D)."""
    half = x.shape[-1] // 2
    rates = theta ** (-2.0 * torch.arange(half) / x.shape[-1])
    positions = torch.arange(len(x)) if positions is None else positions
    angles = positions[:, None, None] * rates
    a, b = x[..., :half], x[..., half:]
    return torch.cat(
        (a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), dim=-1
    )


_QWEN_PARTS = {
    **{part: f"self_attn.{part}_proj.weight" for part in "qkvo"},
    **{f"{part}_bias": f"self_attn.{part}_proj.bias" for part in "qkv"},
    **{f"{part}_norm": f"self_attn.{part}_norm.weight" for part in "qk"},
    **{part: f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")},
    "norm1": "input_layernorm.weight",
    "norm2": "post_attention_layernorm.weight",
}
_QWEN_WHOLE = {
    "embed": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
}
_LLADA_PARTS = {
    **{part: f"{part}_proj" for part in "qkv"},
    "o": "attn_out",
    "gate": "ff_proj",
    "up": "up_proj",
    "down": "ff_out",
    "norm1": "attn_norm",
    "norm2": "ff_norm",
}
_LLADA_WHOLE = {"embed": "wte", "norm": "ln_f", "head": "ff_out"}


def qwen_name(part: str, layer: int | None) -> str:
    return _QWEN_WHOLE[part] if layer is None else f"model.layers.{layer}.{_QWEN_PARTS[part]}"


def llada_name(part: str, layer: int | None) -> str:
    if layer is None:
        return f"model.transformer.{_LLADA_WHOLE[part]}.weight"
    return f"model.transformer.blocks.{layer}.{_LLADA_PARTS[part]}.weight"


LLADA = Published(  # the keys of GSAI-ML/LLaDA-8B-Instruct
    {
        "activation_type": "silu",
        "alibi": False,
        "alibi_bias_max": 8.0,
        "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "attention_layer_norm_with_affine": True,
        "auto_map": {"AutoModelForCausalLM": "modeling_llada.LLaDAModelLM"},
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": HIDDEN,
        "embedding_dropout": 0.0,
        "embedding_size": VOCAB,
        "eos_token_id": 1,
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "init_device": "meta",
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": MASK,
        "max_sequence_length": 128,
        "mlp_hidden_size": MLP,
        "mlp_ratio": 4,
        "model_type": "llada",
        "multi_query_attention": None,
        "n_heads": HEADS,
        "n_kv_heads": HEADS,
        "n_layers": LAYERS,
        "pad_token_id": 1,
        "precision": "amp_bf16",
        "residual_dropout": 0.0,
        "rms_norm_eps": 1e-5,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 500000.0,
        "scale_logits": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.2",
        "use_cache": False,
        "vocab_size": VOCAB,
        "weight_tying": False,
    },
    llada_name,
    eps=1e-5,
    theta=5e5,
    kv_heads=HEADS,
)

_QWEN_KEYS: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": MLP,
    "max_position_embeddings": 128,
    "max_window_layers": 28,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": False,
    "use_sliding_window": False,
    "vocab_size": VOCAB,
}
DREAM = Published(  # the keys of Dream-org/Dream-v0-Instruct-7B
    _QWEN_KEYS
    | {
        "architectures": ["DreamModel"],
        "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
        "mask_token_id": MASK,
        "model_type": "Dream",
        "pad_token_id": 1,
    },
    qwen_name,
    qkv_bias=True,
)
SDAR = Published(  # the keys of JetLM/SDAR-1.7B-Chat
    _QWEN_KEYS
    | {
        "architectures": ["SDARForCausalLM"],
        "attention_bias": False,
        "attn_implementation": "flex_attention",
        "auto_map": {"AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM"},
        "block_size": 4,
        "debug": False,
        "ep_size": 1,
        "fuse_cross_entropy": True,
        "head_dim": HEAD_DIM,
        "mask_token_id": MASK,
        "micro_forward": False,
        "model_type": "sdar",
        "skip_checkpoint": False,
        "use_deepep": False,
    },
    qwen_name,
    qk_norm=True,
)
FAST_DLLM = Published(  # the keys of Efficient-Large-Model/Fast_dLLM_v2_1.5B, which ties its head
    _QWEN_KEYS
    | {
        "architectures": ["Fast_dLLM_QwenForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling.Fast_dLLM_QwenForCausalLM"},
        "bd_size": 8,
        "layer_types": ["full_attention"] * LAYERS,
        "model_type": "Fast_dLLM_Qwen",
        "pad_token_id": 1,
        "tie_word_embeddings": True,
    },
    qwen_name,
    qkv_bias=True,
    tied=True,
)
