"""Reads weights out of torch, and chooses how the kernels keep them."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.models.cpu.bfloat16 import has_bfloat16_products
from engine.models.cpu.product import Floats, Panels, Storage, is_bfloat16

_HUGE_PAGE = 2 << 20


def join(parts: Iterable[Panels]) -> Panels:
    """Some arrays of one type as one flat one, on huge pages where Linux has them.

    A forward of one row reads all weights, and the CPU remembers where fewer pages of 4 KiB are.
    """
    arrays = list(parts)
    joined: Panels = _room(sum(array.nbytes for array in arrays)).view(arrays[0].dtype)
    np.concatenate([array.reshape(-1) for array in arrays], out=joined)
    return joined


def _room(num_bytes: int) -> Any:
    """[num_bytes] of uint8."""
    if num_bytes < _HUGE_PAGE // 2 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.empty(num_bytes, np.uint8)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # what is shared gets small pages
    memory = mmap.mmap(-1, num_bytes + _HUGE_PAGE, flags=flags)
    with suppress(OSError):  # of a Linux that was built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    room = np.frombuffer(memory, np.uint8)  # which keeps the memory
    start = -room.ctypes.data % _HUGE_PAGE
    return room[start : start + num_bytes]


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
