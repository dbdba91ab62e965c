"""What a paged flash kernel is told of a batch: row counts, key counts, page tables, windows."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from engine.models.packing import PackedBatch, Span


@dataclass(frozen=True)
class VarlenPart:
    """Spans that one kernel call attends: S of them with T' rows in all.

    rows: [T'] of the packed batch. cu_seqlens_q and cu_seqlens_k: [S + 1] int32, running sums of
    the spans' rows and keys. seqused_k: [S] int32, the keys themselves. block_table: [S, P] int32
    page ids, padded with page 0. max_q, max_k: the most rows and keys of a span.
    """

    rows: Tensor
    is_causal: bool
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    seqused_k: Tensor
    block_table: Tensor
    max_q: int
    max_k: int

    def window_size(self, window: int | None) -> tuple[int, int]:
        """(left, right) as flash kernels count them, -1 for no limit.

        They look back from each row, and take a span's last row for the one at its last key.
        """
        return -1 if window is None else window - 1, 0 if self.is_causal else -1


def varlen_parts(batch: PackedBatch) -> list[VarlenPart]:
    """Causal spans in one part, blocks in another."""
    placed: dict[bool, list[tuple[Span, int]]] = {}
    for span, first_row in _with_first_rows(batch.spans):
        placed.setdefault(span.is_causal, []).append((span, first_row))
    return [_part(batch, members, is_causal) for is_causal, members in placed.items()]


def _with_first_rows(spans: Seq[Span]) -> Iterator[tuple[Span, int]]:
    starts = accumulate((len(span.token_ids) for span in spans), initial=0)
    return zip(spans, starts, strict=False)


def _part(batch: PackedBatch, members: list[tuple[Span, int]], is_causal: bool) -> VarlenPart:
    size = batch.page_size
    counts = [len(span.token_ids) for span, _ in members]
    ends = [span.num_keys for span, _ in members]
    table = [list(span.page_ids[: -(-span.num_keys // size)]) for span, _ in members]
    width = max(map(len, table))

    def on_device(values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32).to(batch.device)

    rows = [first + i for span, first in members for i in range(len(span.token_ids))]
    return VarlenPart(
        rows=torch.tensor(rows).to(batch.device),
        is_causal=is_causal,
        cu_seqlens_q=on_device(list(accumulate(counts, initial=0))),
        cu_seqlens_k=on_device(list(accumulate(ends, initial=0))),
        seqused_k=on_device(ends),
        block_table=on_device([pages + [0] * (width - len(pages)) for pages in table]),
        max_q=max(counts),
        max_k=max(ends),
    )
