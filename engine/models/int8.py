"""Weights in 8 bits: int8 matrices with a scale a row, and activations with a scale a token.

A product is int8 times int8 into int32, so it is exact, and a token's scale is a function of its
own row alone: what a row gives does not depend on the rows beside it, and drafting changes nothing.
A scale for the whole batch would break that, and so would outliers chosen by it, as in LLM.int8().
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LARGEST = 127.0
_TINY = 1e-12
_MIN_CUDA_ROWS = 17  # torch's kernel refuses fewer on CUDA
_MULTIPLE = 8  # and other sizes than multiples of this
_LEFT_AS_THEY_ARE = ("gate", "router", "shared_expert_gate")  # of experts: a flip is another expert


class Int8Matrix(nn.Module):
    """A weight [out, in] as int8 values [out, in] and scales [out], the largest of each row.

    Vector-wise quantisation of LLM.int8() (arXiv 2208.07339, section 3.1), without its outliers.
    """

    values: Tensor
    scales: Tensor

    def __init__(self, values: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)

    @classmethod
    def of(cls, weight: Tensor) -> Int8Matrix:
        return cls(*_quantize(weight.detach()))

    def __getitem__(self, rows: slice) -> Int8Matrix:
        """Some of its rows, in the same memory."""
        return Int8Matrix(self.values[rows], self.scales[rows])

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] -> [..., out] in x's dtype"""
        rows, scales = _quantize(x.reshape(-1, x.shape[-1]))
        product = _int8_product(rows, self.values).float()
        product = product * scales[:, None] * self.scales
        return product.to(x.dtype).view(*x.shape[:-1], -1)


class Int8Linear(nn.Module):
    """Stands where an `nn.Linear` stood."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = source.in_features, source.out_features
        self.matrix = Int8Matrix.of(source.weight)
        self.bias = source.bias

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.matrix(x)
        return out if self.bias is None else out + self.bias


def linear(x: Tensor, weight: Tensor | Int8Matrix, bias: Tensor | None = None) -> Tensor:
    """x [T, in] times a weight [out, in] of either kind -> [T, out]"""
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    out: Tensor = weight(x)
    return out if bias is None else out + bias


def add_linear(residual: Tensor, x: Tensor, weight: Tensor | Int8Matrix) -> Tensor:
    """residual [T, out] + x [T, in] times a weight [out, in], in one operator if there is one."""
    if isinstance(weight, Tensor):
        return torch.addmm(residual, x, weight.t())
    out: Tensor = weight(x)
    return residual + out


def quantize_weights(model: nn.Module) -> int:
    """Put every linear layer of a model, and every matrix of our fused layers, in 8 bits.

    Returns how many. Embeddings, norms, the routers of experts and sizes that the kernels do not
    take stay as they are. The model can no longer be trained or saved.
    """
    count = 0
    for module in list(model.modules()):
        for name in getattr(module, "MATRICES", ()):
            weight = getattr(module, name)
            if fits(weight):
                delattr(module, name)
                setattr(module, name, Int8Matrix.of(weight))
                count += 1
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and name not in _LEFT_AS_THEY_ARE and fits(child.weight):
                setattr(module, name, Int8Linear(child))
                count += 1
    return count


def fits(weight: Any) -> bool:
    """Whether the kernels take a weight of these sizes."""
    return isinstance(weight, Tensor) and all(n % _MULTIPLE == 0 for n in weight.shape)


def _quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """[N, K] -> int8 [N, K] and float32 scales [N]"""
    x = x.float()
    scales = x.abs().amax(-1).clamp(min=_TINY) / _LARGEST
    return (x / scales[:, None]).round().to(torch.int8), scales


def _int8_product(rows: Tensor, weight: Tensor) -> Tensor:
    """int8 [N, K] and [M, K] -> int32 [N, M]"""
    num_rows = rows.shape[0]
    if rows.is_cuda and num_rows < _MIN_CUDA_ROWS:
        rows = F.pad(rows, (0, 0, 0, _MIN_CUDA_ROWS - num_rows))
    product: Tensor = torch._int_mm(rows, weight.t())
    return product[:num_rows]
