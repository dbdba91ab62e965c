"""The memory behind the pages: keys and values of every layer, as one tensor a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class LayerShape(NamedTuple):
    """One token's keys and values in one layer: [heads, key_dim] and [heads, value_dim]."""

    num_kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def size(self) -> int:
        return self.num_kv_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True)
class KvShape:
    """What one token's keys and values look like."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    unlike: tuple[LayerShape, ...] = ()
    """Of every layer, where they differ, or keys from values; else all are as above."""

    @property
    def layers(self) -> tuple[LayerShape, ...]:
        alike = LayerShape(self.num_kv_heads, self.head_dim, self.head_dim)
        return self.unlike or (alike,) * self.num_layers


class KvPool:
    """Keys and values of one model for every page: of each layer [pages, page_size, Hkv, D]."""

    def __init__(
        self,
        shape: KvShape,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.page_size = page_size

        def pages(num_heads: int, dim: int) -> Tensor:
            # Zeroed, because padded rows read page 0 and NaN times a masked weight of 0 is NaN.
            size = (num_pages, page_size, num_heads, dim)
            return torch.zeros(size, dtype=dtype, device=device)

        self._keys = [pages(layer.num_kv_heads, layer.key_dim) for layer in shape.layers]
        self._values = [pages(layer.num_kv_heads, layer.value_dim) for layer in shape.layers]

    def keys(self, layer: int) -> Tensor:
        """[pages, page_size, Hkv, D]"""
        return self._keys[layer]

    def values(self, layer: int) -> Tensor:
        """[pages, page_size, Hkv, D]"""
        return self._values[layer]

    def planes(self) -> list[Tensor]:
        """Views of all memory, [pages, bytes] uint8 each."""
        return [pages.flatten(1).view(torch.uint8) for pages in (*self._keys, *self._values)]

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store rows; slots: [T] (page * page_size + offset), keys and values: [T, Hkv, D]."""
        self._keys[layer].flatten(0, 1).index_copy_(0, slots, keys)
        self._values[layer].flatten(0, 1).index_copy_(0, slots, values)


def bytes_per_token(shape: KvShape, dtype: torch.dtype) -> int:
    """Memory that one token's keys and values take in one model."""
    return sum(layer.size for layer in shape.layers) * dtype.itemsize
