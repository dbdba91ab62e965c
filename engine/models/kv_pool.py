"""The memory behind the pages: keys and values of every layer, as one tensor a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KvShape:
    """What one token's keys and values look like."""

    num_layers: int
    num_kv_heads: int
    head_dim: int


class KvPool:
    """Keys and values of one model for every page: [layers, 2, pages, page_size, Hkv, D]."""

    def __init__(
        self,
        num_layers: int,
        num_pages: int,
        page_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.page_size = page_size
        shape = (num_layers, 2, num_pages, page_size, num_kv_heads, head_dim)
        # Zeroed, because padded rows read page 0 and NaN times a masked weight of 0 is NaN.
        self._pages = torch.zeros(shape, dtype=dtype, device=device)
        self._slots = self._pages.view(num_layers, 2, num_pages * page_size, num_kv_heads, head_dim)

    def keys(self, layer: int) -> Tensor:
        """[pages, page_size, Hkv, D]"""
        return self._pages[layer, 0]

    def values(self, layer: int) -> Tensor:
        """[pages, page_size, Hkv, D]"""
        return self._pages[layer, 1]

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store rows; slots: [T] (page * page_size + offset), keys and values: [T, Hkv, D]."""
        self._slots[layer, 0].index_copy_(0, slots, keys)
        self._slots[layer, 1].index_copy_(0, slots, values)


def bytes_per_token(shape: KvShape, dtype: torch.dtype) -> int:
    """Memory that one token's keys and values take in one model."""
    return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * dtype.itemsize
