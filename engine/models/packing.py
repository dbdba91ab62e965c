"""Packing: the rows of many sequences laid side by side, and what attention must know of them."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive rows of one sequence: new tokens at positions start, start + 1, ..."""

    token_ids: Seq[int]
    start: int
    page_ids: Seq[int]

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


@dataclass(frozen=True)
class SpanGroup:
    """Spans that attend in one call, padded to the longest of them.

    rows: [S, Q] row of each span's queries in the packed batch, padding repeats the last one.
    pages: [S, P] page ids, padded with page 0. positions: [S, Q] of the queries.
    """

    rows: Tensor
    pages: Tensor
    positions: Tensor
    real: Tensor | None
    """[S * Q] indices of the rows that are no padding; None where all are real."""


@dataclass(frozen=True)
class PackedBatch:
    """One ragged batch. Shapes: T rows in all.

    token_ids, positions, slots: [T]; slots say where the rows' keys and values are stored.
    """

    spans: Seq[Span]
    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    page_size: int
    device: torch.device

    @cached_property
    def groups(self) -> list[SpanGroup]:
        """Short spans (decode and verify) together, each long one (prefill) on its own.

        Padding a decode row to the length of a prefill chunk would cost more than its attention.
        """
        offset = 0
        short: list[tuple[int, Span]] = []
        groups: list[list[tuple[int, Span]]] = []
        for span in self.spans:
            if len(span.token_ids) <= MAX_PADDED_ROWS:
                short.append((offset, span))
            else:
                groups.append([(offset, span)])
            offset += len(span.token_ids)
        if short:
            groups.insert(0, short)
        return [_group(members, self.page_size, self.device) for members in groups]


MAX_PADDED_ROWS = 32
"""Spans up to this many rows are padded to a common length and attend together."""


def pack(spans: Seq[Span], page_size: int, device: torch.device) -> PackedBatch:
    """Lay the spans' rows side by side."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    for span in spans:
        token_ids.extend(span.token_ids)
        positions.extend(range(span.start, span.end))
        pages = span.page_ids
        slots.extend(
            pages[p // page_size] * page_size + p % page_size for p in range(span.start, span.end)
        )
    packed = torch.tensor([token_ids, positions, slots], dtype=torch.int64).to(device)
    return PackedBatch(
        spans=spans,
        token_ids=packed[0],
        positions=packed[1],
        slots=packed[2],
        page_size=page_size,
        device=device,
    )


def _group(members: list[tuple[int, Span]], page_size: int, device: torch.device) -> SpanGroup:
    width = max(len(span.token_ids) for _, span in members)
    num_pages = max(-(-span.end // page_size) for _, span in members)
    rows, pages, positions = [], [], []
    real: list[int] = []
    for index, (offset, span) in enumerate(members):
        count = len(span.token_ids)
        used = -(-span.end // page_size)
        padding = width - count
        rows.append([*range(offset, offset + count), *[offset + count - 1] * padding])
        positions.append([*range(span.start, span.end), *[span.end - 1] * padding])
        pages.append([*span.page_ids[:used], *[0] * (num_pages - used)])
        real.extend(range(index * width, index * width + count))
    is_padded = len(real) < len(members) * width
    return SpanGroup(
        rows=torch.tensor(rows, device=device),
        pages=torch.tensor(pages, device=device),
        positions=torch.tensor(positions, device=device),
        real=torch.tensor(real, device=device) if is_padded else None,
    )
