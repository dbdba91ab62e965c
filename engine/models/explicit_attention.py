"""Attention written out, for what fused kernels do not offer: capped scores and attention sinks."""

from __future__ import annotations

import torch
from torch import Tensor


def attend_explicitly(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    scale: float,
    *,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """softmax(cap(q k^T scale) | sink) v in float32; [S, Hq, Q, D], [S, Hkv, K, D] -> [S, Hq, Q, D]

    mask: [S, 1, Q, K], True where seen. Capped scores are c tanh(s / c) (Gemma 2, arXiv 2408.00118,
    section 2). A sink [Hq] is one more score of each row, whose share of the weight goes nowhere
    (gpt-oss, arXiv 2508.10925, section 2.2).
    """
    (num_spans, num_heads, width, _), num_kv_heads = queries.shape, keys.shape[1]
    groups = (num_spans, num_kv_heads, num_heads // num_kv_heads)
    shared = queries.reshape(*groups, width, -1)  # [S, Hkv, G, Q, D]
    scores = (shared @ keys[:, :, None].transpose(-1, -2)).float() * scale
    scores = scores.flatten(1, 2)  # [S, Hq, Q, K]
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        sink = sinks.float()[None, :, None, None].expand(num_spans, -1, width, 1)
        scores = torch.cat((scores, sink), dim=-1)
    weights = scores.softmax(-1)[..., : keys.shape[2]].to(values.dtype)
    weights = weights.reshape(*groups, width, -1)
    return (weights @ values[:, :, None]).flatten(1, 2)
