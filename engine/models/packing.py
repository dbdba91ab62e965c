"""Packing: the rows of many sequences laid side by side, and what attention must know of them."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive rows of one sequence: new tokens at positions start, start + 1, ...

    A causal row sees what stands before it. With `visible_end` every row sees all positions below
    that: a block denoised together sees itself, and a canvas also what lies after the block.
    """

    token_ids: Seq[int]
    start: int
    page_ids: Seq[int]
    visible_end: int | None = None
    feedback: Tensor | None = field(default=None, compare=False)
    """What the model's last pass over these rows gave, [rows, H], where it is told that."""

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)

    @property
    def is_causal(self) -> bool:
        return self.visible_end is None

    @property
    def num_keys(self) -> int:
        """How many leading positions some row of this span sees."""
        return self.end if self.visible_end is None else self.visible_end


@dataclass(frozen=True)
class SpanGroup:
    """Spans that attend in one call, padded to the longest of them.

    rows: [S, Q] row of each span's queries in the packed batch, padding repeats the last one.
    pages: [S, P] page ids, padded with page 0. positions: [S, Q] of the queries, horizons: [S, Q]
    the last position that each sees, origins: [S, Q] from where a sliding window looks back: from
    each causal row itself, from the first row of what sees itself as a whole.
    """

    rows: Tensor
    pages: Tensor
    positions: Tensor
    horizons: Tensor
    origins: Tensor
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
        """Short spans (decode and verify) together, long blocks of one length, else each alone.

        Padding a decode row to the length of a prefill chunk would cost more than its attention.
        """
        offset = 0
        groups: dict[int, list[tuple[int, Span]]] = {}
        for span in self.spans:
            length = len(span.token_ids)
            own = -offset - 1 if span.is_causal else length
            groups.setdefault(0 if length <= MAX_PADDED_ROWS else own, []).append((offset, span))
            offset += length
        return [_group(members, self.page_size, self.device) for members in groups.values()]


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
    num_pages = max(-(-span.num_keys // page_size) for _, span in members)
    rows, pages, positions, horizons, origins = [], [], [], [], []
    real: list[int] = []
    for index, (offset, span) in enumerate(members):
        count = len(span.token_ids)
        used = -(-span.num_keys // page_size)
        padding = width - count
        rows.append([*range(offset, offset + count), *[offset + count - 1] * padding])
        positions.append([*range(span.start, span.end), *[span.end - 1] * padding])
        last = span.visible_end
        horizons.append(positions[-1] if last is None else [last - 1] * width)
        origins.append(positions[-1] if last is None else [span.start] * width)
        pages.append([*span.page_ids[:used], *[0] * (num_pages - used)])
        real.extend(range(index * width, index * width + count))
    is_padded = len(real) < len(members) * width
    return SpanGroup(
        rows=torch.tensor(rows, device=device),
        pages=torch.tensor(pages, device=device),
        positions=torch.tensor(positions, device=device),
        horizons=torch.tensor(horizons, device=device),
        origins=torch.tensor(origins, device=device),
        real=torch.tensor(real, device=device) if is_padded else None,
    )
