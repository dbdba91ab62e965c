"""Paged attention for every model of transformers, and the backend that runs everywhere (SDPA).

Attention is registered with transformers under `PAGED_ATTENTION`. transformers builds no mask for a
name that it does not know, and hands our `PagedContext` through to each layer's call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from engine.models.compiled import OpaqueContext
from engine.models.explicit_attention import attend_explicitly
from engine.models.kv_pool import KvPool
from engine.models.packing import PackedBatch, SpanGroup
from engine.models.varlen import VarlenPart, varlen_parts

PAGED_ATTENTION = "dfastllm_paged"

# (q [T, Hq, D], layer, context, scale, window) -> [T, Hq, D]
Backend = Callable[[Tensor, int, "PagedContext", float, int | None], Tensor]


@dataclass(frozen=True)
class PagedContext:
    """What attention needs to know of one forward; travels as a keyword to every layer."""

    batch: PackedBatch
    pool: KvPool
    backend: Backend

    @cached_property
    def masks(self) -> dict[tuple[int, int | None], Tensor]:
        return {}

    def mask(self, index: int, group: SpanGroup, window: int | None) -> Tensor:
        """[S, 1, Q, K] where a query may look; made once a forward, not once a layer."""
        key = (index, window)
        if key not in self.masks:
            num_slots = group.pages.shape[1] * self.batch.page_size
            key_positions = torch.arange(num_slots, device=self.batch.device)
            seen = key_positions <= group.horizons[:, :, None]
            if window is not None:
                seen &= key_positions > group.origins[:, :, None] - window
            self.masks[key] = seen[:, None]
        return self.masks[key]

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: int,
        scale: float,
        window: int | None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Keep the rows' keys and values [T, Hkv, D] and attend: q [T, Hq, D] -> [T, Hq, D]

        Capped scores and sinks take the written-out attention, whatever the backend.
        """
        self.pool.write(layer, self.batch.slots, k, v)
        if softcap is None and sinks is None:
            return self.backend(q, layer, self, scale, window)
        explicit = partial(attend_explicitly, scale=scale, softcap=softcap, sinks=sinks)
        return _attend_groups(q, layer, self, window, explicit)

    @cached_property
    def varlen_parts(self) -> list[VarlenPart]:
        """What a flash kernel is told; made once a forward, as masks are."""
        return varlen_parts(self.batch)


def sdpa_backend(
    q: Tensor, layer: int, context: PagedContext, scale: float, window: int | None
) -> Tensor:
    """Gather each span's pages and let torch's SDPA do the rest; runs on any device."""

    def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            scale=scale,
            enable_gqa=queries.shape[1] != keys.shape[1],
        )

    return _attend_groups(q, layer, context, window, attend)


# (queries [S, Hq, Q, D], keys and values [S, Hkv, K, D], mask [S, 1, Q, K]) -> [S, Hq, Q, D]
_Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _attend_groups(
    q: Tensor, layer: int, context: PagedContext, window: int | None, attend: _Attend
) -> Tensor:
    groups = context.batch.groups
    if len(groups) == 1 and groups[0].real is None:
        return _attend_group(q, layer, context, 0, window, attend)
    out = q.new_empty(*q.shape[:2], context.pool.values(layer).shape[-1])
    for index, group in enumerate(groups):
        attended = _attend_group(q, layer, context, index, window, attend)
        rows = group.rows.flatten()
        if group.real is not None:
            attended, rows = attended[group.real], rows[group.real]
        out[rows] = attended
    return out


def _attend_group(
    q: Tensor, layer: int, context: PagedContext, index: int, window: int | None, attend: _Attend
) -> Tensor:
    """[S * Q, Hq, D] of one group, padding included."""
    group = context.batch.groups[index]
    num_spans, width = group.rows.shape
    queries = (
        q[group.rows.flatten()] if len(context.batch.groups) > 1 or group.real is not None else q
    )
    # queries: [S, Hq, Q, D] from here on
    queries = queries.view(num_spans, width, *queries.shape[1:]).transpose(1, 2)
    keys = gather_pages(context.pool.keys(layer), group.pages)
    values = gather_pages(context.pool.values(layer), group.pages)
    attended = attend(queries, keys, values, context.mask(index, group, window))
    return attended.transpose(1, 2).flatten(0, 1)


def gather_pages(pool: Tensor, pages: Tensor) -> Tensor:
    """pool: [pages, page_size, Hkv, D], pages: [S, P] -> [S, Hkv, P * page_size, D]"""
    num_spans, num_pages = pages.shape
    gathered = pool.index_select(0, pages.flatten())
    return gathered.view(num_spans, num_pages * pool.shape[1], *pool.shape[2:]).transpose(1, 2)


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    paged: PagedContext | OpaqueContext,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface. query: [1, Hq, T, D]; key and value: [1, Hkv, T, D]."""
    layer: int = module.layer_idx  # type: ignore[assignment]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return paged.attend(q, k, v, layer, scale, sliding_window, softcap, s_aux)[None], None


AttentionInterface.register(PAGED_ATTENTION, paged_attention)
