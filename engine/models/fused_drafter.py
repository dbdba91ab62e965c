"""A DFlash layer with fewer and larger operators, for CPUs; what `fused_layers` is to verifiers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.dflash import Attend, DFlashDrafter, DFlashLayer
from engine.models.fused_layers import rotate
from engine.models.int8 import Int8Matrix, add_linear, linear


def fuse_drafter(drafter: DFlashDrafter) -> None:
    """Replace the layers by ones that compute the same in about half as many operators.

    The drafter can draft and keep its context as before, but no longer be saved or trained. One
    with biases in its attention stays as it is.
    """
    if drafter.config.attention_bias:
        return
    drafter.layers = nn.ModuleList(FusedDraftLayer(layer) for layer in drafter.layers)  # type: ignore[arg-type]


class FusedDraftLayer(nn.Module):
    """One drafter layer, with the weights of a `DFlashLayer`."""

    MATRICES = ("qkv", "out", "gate_up", "down")  # what may be held in 8 bits

    qkv: Tensor | Int8Matrix
    out: Tensor | Int8Matrix
    gate_up: Tensor | Int8Matrix
    down: Tensor | Int8Matrix

    def __init__(self, layer: DFlashLayer) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.rope = attention.rope
        self.head_dim = attention.head_dim
        self.eps = layer.input_layernorm.eps
        self.num_heads = attention.q_proj.out_features // self.head_dim
        self.num_kv_heads = attention.k_proj.out_features // self.head_dim
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        norms = ((attention.q_norm, self.num_heads), (attention.k_norm, self.num_kv_heads))
        self.qkv = _fixed(torch.cat([p.weight for p in projections]))
        # [Hq + Hkv, D]: queries and keys are normalised together.
        self.head_norm = _fixed(torch.cat([norm.weight.expand(n, -1) for norm, n in norms]))
        self.out = _fixed(attention.o_proj.weight)
        self.gate_up = _fixed(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
        self.down = _fixed(mlp.down_proj.weight)
        self.input_norm = _fixed(layer.input_layernorm.weight)
        self.post_norm = _fixed(layer.post_attention_layernorm.weight)

    def forward(self, x: Tensor, positions: Tensor, index: int, attend: Attend) -> Tensor:
        """Rows of all blocks [N, H] at positions [N] -> [N, H]"""
        heads = linear(self._norm(x, self.input_norm), self.qkv)
        heads = heads.view(len(x), -1, self.head_dim)  # [N, Hq + 2 Hkv, D]
        num_rotated = self.num_heads + self.num_kv_heads
        rotated = self._place(heads[:, :num_rotated], self.head_norm, positions)
        queries, keys = rotated[:, : self.num_heads], rotated[:, self.num_heads :]
        mixed = attend(index, queries, keys, heads[:, num_rotated:])
        x = add_linear(x, mixed.flatten(1), self.out)
        gate, up = linear(self._norm(x, self.post_norm), self.gate_up).chunk(2, dim=-1)
        return add_linear(x, F.silu(gate) * up, self.down)

    def context_kv(self, context: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Context features [T, H] at positions [T] -> k (normed, roped) and v, both [T, Hkv, D]."""
        weight = self.qkv[self.num_heads * self.head_dim :]
        heads = linear(context, weight).view(len(context), -1, self.head_dim)
        keys, values = heads[:, : self.num_kv_heads], heads[:, self.num_kv_heads :]
        return self._place(keys, self.head_norm[self.num_heads :], positions), values

    def _place(self, heads: Tensor, norm: Tensor, positions: Tensor) -> Tensor:
        """Norm and rotation: heads [T, N, D] at positions [T]."""
        normed = F.rms_norm(heads, (self.head_dim,), None, self.eps) * norm
        cos, sin = self.rope.tables(positions)
        return rotate(normed, cos.to(normed.dtype), sin.to(normed.dtype))

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)


def _fixed(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach(), requires_grad=False)
