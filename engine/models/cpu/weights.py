"""Reads weights out of torch, and chooses how the kernels keep them."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.models.cpu.bfloat16 import has_bfloat16_products
from engine.models.cpu.product import Floats, Storage, is_bfloat16


def to_array(tensor: Tensor) -> Floats:
    """The same numbers in float32; of a float32 tensor the same memory."""
    return np.ascontiguousarray(tensor.detach().float().numpy())


def choose_storage(layers: Seq[Any], *others: Tensor) -> Storage:
    """How all matrices of these layers and those others are kept.

    The models' own type says how they are multiplied; what is bfloat16 exactly takes half the
    bytes under float32, too.
    """
    matrices = [getattr(layer, name) for layer in layers for name in type(layer).MATRICES]
    matrices += others
    if all(matrix.dtype is torch.bfloat16 for matrix in matrices):
        return Storage.PAIRS
    are_halves = all(is_bfloat16(to_array(matrix)) for matrix in matrices)
    return Storage.HALVES if are_halves else Storage.FLOATS


def can_multiply_in(dtype: torch.dtype) -> bool:
    """Whether there are products of models in that type on this CPU."""
    return dtype is torch.float32 or (dtype is torch.bfloat16 and has_bfloat16_products())


def embedding_bits(weight: Tensor) -> Any:
    """[V, H] in float32 or bfloat16, whose memory is shared -> uint32 or uint16."""
    kind = torch.uint16 if weight.dtype is torch.bfloat16 else torch.uint32
    return weight.detach().contiguous().view(kind).numpy()
