"""Paged attention for every model of transformers, and the backends that compute it.

A backend is registered with transformers under `PAGED_ATTENTION`. transformers builds no mask for a
name that it does not know, and hands our `PagedContext` through to each layer's call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from engine.models.explicit_attention import attend_explicitly
from engine.models.kv_pool import KvPool
from engine.models.packing import PackedBatch, Span, SpanGroup

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


def varlen_backend(
    q: Tensor, layer: int, context: PagedContext, scale: float, window: int | None
) -> Tensor:
    """torch's own paged flash attention, in place in the pool; CUDA, bf16 or fp16.

    Causal spans and blocks go in one call each; the kernel's window looks back from each row, which
    is not what a block does, so that is left to SDPA. Unverified: no run on a GPU has exercised it.
    """
    if window is not None and not all(span.is_causal for span in context.batch.spans):
        return sdpa_backend(q, layer, context, scale, window)
    parts = _varlen_parts(context)
    if len(parts) == 1:
        return _varlen_call(q, layer, context, parts[0], scale, window)
    out = torch.empty_like(q)
    for part in parts:
        out[part.rows] = _varlen_call(q[part.rows], layer, context, part, scale, window)
    return out


@dataclass(frozen=True)
class VarlenPart:
    """The spans of one kind, as the kernel wants them; `rows` [T'] of the packed batch."""

    rows: Tensor
    is_causal: bool
    cu_seq_q: Tensor
    seqused_k: Tensor
    block_table: Tensor
    max_q: int
    max_k: int


def _varlen_call(
    q: Tensor,
    layer: int,
    context: PagedContext,
    part: VarlenPart,
    scale: float,
    window: int | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(
        q,
        context.pool.keys(layer),
        context.pool.values(layer),
        part.cu_seq_q,
        None,
        part.max_q,
        part.max_k,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0 if part.is_causal else -1),
        enable_gqa=True,
        seqused_k=part.seqused_k,
        block_table=part.block_table,
    )
    assert isinstance(out, Tensor)  # a pair only where auxiliary outputs are asked for
    return out


def _varlen_parts(context: PagedContext) -> list[VarlenPart]:
    """Made once a forward and kept beside the masks."""
    cached: list[VarlenPart] | None = context.__dict__.get("_varlen")
    if cached is None:
        batch = context.batch
        numbers = list(accumulate((len(span.token_ids) for span in batch.spans), initial=0))
        placed = list(zip(batch.spans, numbers, strict=False))
        kinds = ([p for p in placed if p[0].is_causal is causal] for causal in (True, False))
        cached = [varlen_part(batch, members) for members in kinds if members]
        context.__dict__["_varlen"] = cached
    return cached


def varlen_part(batch: PackedBatch, members: list[tuple[Span, int]]) -> VarlenPart:
    """Spans of one kind, each with the number of its first row."""
    size, device = batch.page_size, batch.device
    spans = [span for span, _ in members]
    counts = [len(span.token_ids) for span in spans]
    ends = [span.num_keys for span in spans]
    widest = max(-(-end // size) for end in ends)
    table = [[*span.page_ids[: -(-span.num_keys // size)]] for span in spans]
    padded = [row + [0] * (widest - len(row)) for row in table]
    rows = [first + i for span, first in members for i in range(len(span.token_ids))]
    starts = torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return VarlenPart(
        rows=torch.tensor(rows).to(device),
        is_causal=spans[0].is_causal,
        cu_seq_q=starts.to(device),
        seqused_k=torch.tensor(ends, dtype=torch.int32, device=device),
        block_table=torch.tensor(padded, dtype=torch.int32, device=device),
        max_q=max(counts),
        max_k=max(ends),
    )


def choose_backend(device: torch.device, dtype: torch.dtype, name: str = "auto") -> Backend:
    """Pick by capability: torch's paged varlen kernel on CUDA in half precision, else SDPA."""
    half = dtype in (torch.bfloat16, torch.float16)
    if name == "varlen" or (name == "auto" and device.type == "cuda" and half):
        return varlen_backend
    if name in ("auto", "sdpa"):
        return sdpa_backend
    raise ValueError(f"unknown attention backend {name!r}; known: auto, sdpa, varlen")


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    paged: PagedContext,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface. query: [1, Hq, T, D]; key and value: [1, Hkv, T, D].

    Capped scores and sinks (`s_aux`) take the written-out attention, whatever the backend.
    """
    layer: int = module.layer_idx  # type: ignore[assignment]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    paged.pool.write(layer, paged.batch.slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
    queries = query[0].transpose(0, 1)
    if softcap is None and s_aux is None:
        return paged.backend(queries, layer, paged, scale, sliding_window)[None], None
    attend = partial(attend_explicitly, scale=scale, softcap=softcap, sinks=s_aux)
    return _attend_groups(queries, layer, paged, sliding_window, attend)[None], None


AttentionInterface.register(PAGED_ATTENTION, paged_attention)
