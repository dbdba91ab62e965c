"""Decoder layers of the Llama family with fewer and larger operators, for CPUs.

A layer of transformers is some sixty small operators behind a dozen modules; on a CPU a small model
spends most of a decode step on calling them. Here query, key and value are one product, gate and
up another, residuals are added inside the products, and rotation is three operators. It is the
same function of the same weights: the self-test at load compares the logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.attention import PagedContext
from engine.models.compiled import OpaqueContext
from engine.models.int8 import Int8Matrix, add_linear, linear

_KNOWN_LAYERS = frozenset(
    {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
)


def can_fuse(layer: nn.Module) -> bool:
    """Whether this is a layer of transformers' own that `FusedLayer` computes."""
    kind = type(layer)
    if kind.__name__ not in _KNOWN_LAYERS or not kind.__module__.startswith("transformers."):
        return False
    known: Any = layer
    linears = (known.self_attn.o_proj, known.mlp.gate_proj, known.mlp.up_proj, known.mlp.down_proj)
    is_silu = type(known.mlp.act_fn).__name__ in ("SiLU", "SiLUActivation")
    return is_silu and all(linear.bias is None for linear in linears)


class FusedLayer(nn.Module):
    """One pre-norm decoder layer over packed rows, with the weights of a transformers layer."""

    MATRICES = ("qkv", "out", "gate_up", "down")  # what may be held in 8 bits

    input_norm: Tensor
    qkv: Tensor | Int8Matrix
    qkv_bias: Tensor | None
    head_norm: Tensor | None
    out: Tensor | Int8Matrix
    post_norm: Tensor
    gate_up: Tensor | Int8Matrix
    down: Tensor | Int8Matrix

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        source: Any = layer
        attention, mlp = source.self_attn, source.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.layer_idx: int = attention.layer_idx
        self.head_dim: int = attention.head_dim
        self.num_heads: int = projections[0].out_features // self.head_dim
        self.num_kv_heads: int = projections[1].out_features // self.head_dim
        self.scale: float = attention.scaling
        self.window = _window(attention)
        self.eps: float = source.input_layernorm.variance_epsilon
        biases = [p.bias for p in projections]
        has_bias = biases[0] is not None
        self._keep("input_norm", source.input_layernorm.weight)
        self._keep("qkv", torch.cat([p.weight for p in projections]))
        self._keep("qkv_bias", torch.cat(biases) if has_bias else None)
        self._keep("head_norm", self._head_norm(attention))
        self._keep("out", attention.o_proj.weight)
        self._keep("post_norm", source.post_attention_layernorm.weight)
        self._keep("gate_up", torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
        self._keep("down", mlp.down_proj.weight)

    def forward(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        paged: PagedContext | OpaqueContext,
        **_: Any,
    ) -> Tensor:
        """hidden_states: [1, T, H]; cos and sin: [1, T, D] -> [1, T, H]"""
        x = hidden_states[0]
        qkv = linear(self._norm(x, self.input_norm), self.qkv, self.qkv_bias)
        heads = qkv.view(len(x), -1, self.head_dim)  # [T, Hq + 2 Hkv, D]
        num_rotated = self.num_heads + self.num_kv_heads
        rotated = heads[:, :num_rotated]
        if self.head_norm is not None:
            rotated = F.rms_norm(rotated, (self.head_dim,), None, self.eps) * self.head_norm
        rotated = rotate(rotated, *position_embeddings)
        queries, keys = rotated[:, : self.num_heads], rotated[:, self.num_heads :]
        values = heads[:, num_rotated:]
        attended = paged.attend(queries, keys, values, self.layer_idx, self.scale, self.window)
        x = add_linear(x, attended.flatten(1), self.out)
        gate_up = linear(self._norm(x, self.post_norm), self.gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return add_linear(x, F.silu(gate) * up, self.down)[None]

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)

    def _head_norm(self, attention: Any) -> Tensor | None:
        """[Hq + Hkv, D] of a model that normalises queries and keys, so that both go in one."""
        if not hasattr(attention, "q_norm"):
            return None
        weights = (attention.q_norm.weight, attention.k_norm.weight)
        counts = (self.num_heads, self.num_kv_heads)
        return torch.cat([w.expand(n, -1) for w, n in zip(weights, counts, strict=True)])

    def _keep(self, name: str, weight: Tensor | None) -> None:
        value = None if weight is None else nn.Parameter(weight.detach(), requires_grad=False)
        self.register_parameter(name, value)


def _window(attention: Any) -> int | None:
    """Qwen decides by layer and keeps the window there; Mistral has one for all in its config."""
    if hasattr(attention, "sliding_window"):
        window: int | None = attention.sliding_window
        return window
    return getattr(attention.config, "sliding_window", None)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding by halves: x [T, N, D], cos and sin [1, T, D] -> [T, N, D]"""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    turned = torch.cat((-second, first), dim=-1)
    return torch.addcmul(x * cos[0, :, None], turned, sin[0, :, None])
