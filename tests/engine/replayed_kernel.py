"""What a paged flash kernel computes from its arguments alone, in plain torch, row by row."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from engine.models.varlen import VarlenPart


def replayed_kernel(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    part: VarlenPart,
    scale: float,
    window: tuple[int, int],
) -> Tensor:
    """As flash-attn documents it: the last row stands at the last key, limits are inclusive."""
    out = torch.full_like(q, torch.nan)
    bounds = part.cu_seqlens_q.tolist()
    lengths = part.seqused_k.tolist()
    assert part.cu_seqlens_k.diff().tolist() == lengths
    assert part.max_q == max(b - a for a, b in pairwise(bounds))
    assert part.max_k == max(lengths)
    for span, length in enumerate(lengths):
        own_keys = keys[part.block_table[span]].flatten(0, 1)[:length]
        own_values = values[part.block_table[span]].flatten(0, 1)[:length]
        num_rows = bounds[span + 1] - bounds[span]
        for i in range(num_rows):
            at = i + length - num_rows
            first = 0 if window[0] < 0 else max(0, at - window[0])
            last = length if window[1] < 0 else at + window[1] + 1
            row = q[bounds[span] + i]
            out[bounds[span] + i] = _attend(
                row, own_keys[first:last], own_values[first:last], scale
            )
    return out


def _attend(row: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """row: [Hq, D], keys and values: [K, Hkv, D] -> [Hq, D]"""
    group = row.shape[0] // keys.shape[1]
    keys, values = (x.repeat_interleave(group, dim=1).float() for x in (keys, values))
    weights = (torch.einsum("hd,khd->hk", row.float(), keys) * scale).softmax(-1)
    return torch.einsum("hk,khd->hd", weights, values).to(row.dtype)
