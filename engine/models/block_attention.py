"""Attention of drafter blocks with torch's operators."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.models.attention import gather_pages
from engine.models.dflash import DFlashConfig
from engine.models.kv_pool import KvPool
from engine.models.packing import Span


class BlockAttention:
    """Each block sees the cached context before its anchor, and all of itself, or what is near."""

    def __init__(
        self, pool: KvPool, blocks: Seq[Span], starts: Tensor, width: int, config: DFlashConfig
    ) -> None:
        self._pool = pool
        self._width = width
        self._config = config
        self._masks: dict[tuple[int | None, bool], Tensor] = {}
        num_pages = max(1, max(-(-block.start // pool.page_size) for block in blocks))
        rows = [list(block.page_ids[:num_pages]) for block in blocks]
        padded = [row + [0] * (num_pages - len(row)) for row in rows]
        self._pages = torch.tensor(padded).to(starts.device)
        slots = torch.arange(num_pages * pool.page_size, device=starts.device)
        is_context = slots < starts[:, None]  # [S, K]
        own = torch.ones(len(blocks), width, dtype=torch.bool, device=starts.device)
        self._known = torch.cat((is_context, own), dim=1)[:, None]  # [S, 1, K + B]
        self._rows = starts[:, None] + torch.arange(width, device=starts.device)  # [S, B]
        self._keys = torch.cat((slots.expand(len(blocks), -1), self._rows), dim=1)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q: [S * B, Hq, D], k and v: [S * B, Hkv, D] -> [S * B, Hq, D]"""
        queries, own_keys, own_values = (
            x.reshape(-1, self._width, *x.shape[1:]).transpose(1, 2) for x in (q, k, v)
        )
        keys = torch.cat((gather_pages(self._pool.keys(layer), self._pages), own_keys), dim=2)
        values = torch.cat((gather_pages(self._pool.values(layer), self._pages), own_values), dim=2)
        out = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=self._mask(layer).expand(-1, -1, self._width, -1),
            enable_gqa=queries.shape[1] != keys.shape[1],
        )
        return out.transpose(1, 2).flatten(0, 1)

    def _mask(self, layer: int) -> Tensor:
        """[S, 1, 1 or B, K + B]; made once a forward for each kind of layer."""
        kind = (self._config.window(layer), self._config.is_causal(layer))
        if kind not in self._masks:
            seen, (window, is_causal) = self._known, kind
            ahead = self._keys[:, None] - self._rows[:, :, None]  # [S, B, K + B]
            if window is not None:
                seen = seen & (ahead.abs() < window)
            if is_causal:
                seen = seen & (ahead <= 0)
            self._masks[kind] = seen[:, None]
        return self._masks[kind]
