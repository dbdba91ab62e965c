"""Lays spans out for the kernels."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import accumulate, chain

import numpy as np

from engine.models.cpu.attention import BLOCK
from engine.models.cpu.decoder import Ints, Rows
from engine.models.cpu.kernel import kernel
from engine.models.packing import Span


def pack_rows(spans: Seq[Span], page_size: int) -> Rows:
    """Rows that read and write their own positions; `page_size` is a multiple of 16."""
    for span in spans:  # a kernel would go on in the pages of the next
        assert reach(span) <= len(span.page_ids) * page_size, "a span has rows behind its pages"
    pages = [span.page_ids[: -(-reach(span) // page_size)] for span in spans]
    positions, ends, origins, firsts = _lay_out(
        np.array([span.start for span in spans]),
        np.array([len(span.token_ids) for span in spans]),
        np.array([span.visible_end or 0 for span in spans]),
    )
    blocks, tables = _blocks(pages, page_size)
    gaps = np.zeros((len(spans), 2), np.int64)
    return Rows(positions, positions, ends, origins, firsts, tables, blocks, gaps)


def reach(span: Span) -> int:
    """How many leading positions are read or written."""
    return max(span.end, span.num_keys)


def pack_drafts(blocks: Seq[Span], page_size: int, scratch: int) -> Rows:
    """Drafter blocks, that see what stands before them and all of themselves.

    Their own keys and values go to blocks from `scratch` on, which stand behind the context's in
    each table; what is left of the context's last block is the gap.
    """
    width = len(blocks[0].token_ids)
    pages = [block.page_ids[: -(-block.start // page_size)] for block in blocks]
    starts = np.array([block.start for block in blocks])
    num_own = num_scratch_blocks(width)
    return Rows(*_lay_out_drafts(starts, *_blocks(pages, page_size), width, scratch, num_own))


def num_scratch_blocks(width: int) -> int:
    """Blocks that the keys of one draft of so many rows take."""
    return -(-width // BLOCK)


def _blocks(pages: Seq[Seq[int]], page_size: int) -> tuple[Ints, Ints]:
    """The blocks of some page tables, one after the other, and where each table's begin."""
    per_page = page_size // BLOCK
    num_pages = sum(map(len, pages))
    blocks = np.fromiter(chain.from_iterable(pages), np.int64, num_pages)
    if per_page > 1:
        blocks = (blocks[:, None] * per_page + np.arange(per_page)).ravel()
    begins = accumulate((len(table) * per_page for table in pages), initial=0)
    return blocks, np.array(list(begins), np.int64)


@kernel
def _lay_out(starts, counts, visible):
    """Positions, ends and origins of every row, and every span's first row."""
    total = counts.sum()
    positions, ends = np.empty(total, np.int64), np.empty(total, np.int64)
    origins, firsts = np.empty(total, np.int64), np.zeros(len(starts) + 1, np.int64)
    row = 0
    for span in range(len(starts)):
        for position in range(starts[span], starts[span] + counts[span]):
            positions[row] = position
            ends[row] = visible[span] or position + 1
            origins[row] = starts[span] if visible[span] else position
            row += 1
        firsts[span + 1] = row
    return positions, ends, origins, firsts


@kernel
def _lay_out_drafts(starts, context, begins, width, scratch, num_own):
    """The fields of `Rows`, for blocks of `width` rows behind `starts` positions of context."""
    num_blocks, total = len(starts), len(starts) * width
    positions, places = np.empty(total, np.int64), np.empty(total, np.int64)
    ends, origins = np.empty(total, np.int64), np.empty(total, np.int64)
    spans, tables = np.empty(num_blocks + 1, np.int64), np.zeros(num_blocks + 1, np.int64)
    gaps = np.empty((num_blocks, 2), np.int64)
    for i in range(num_blocks):
        tables[i + 1] = tables[i] + (starts[i] + BLOCK - 1) // BLOCK + num_own
    blocks = np.empty(tables[num_blocks], np.int64)
    for i in range(num_blocks):
        used = (starts[i] + BLOCK - 1) // BLOCK
        first = used * BLOCK
        spans[i], gaps[i, 0], gaps[i, 1] = i * width, starts[i], first
        for k in range(used):
            blocks[tables[i] + k] = context[begins[i] + k]
        for k in range(num_own):
            blocks[tables[i] + used + k] = scratch + i * num_own + k
        for k in range(width):
            row = i * width + k
            positions[row], places[row] = starts[i] + k, first + k
            ends[row], origins[row] = first + width, starts[i]
    spans[num_blocks] = total
    return positions, places, ends, origins, spans, tables, blocks, gaps
