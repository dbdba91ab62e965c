"""Lays out spans for the kernels: which rows there are, what each sees, and where its keys go.

Python packs the spans into one array of numbers, and every thread lays them out for itself.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

import numpy as np

from engine.models.cpu.attention import BLOCK
from engine.models.cpu.decoder import Ints, Rows
from engine.models.cpu.kernel import inner_kernel
from engine.models.packing import Span

_START, COUNT, _VISIBLE, _PAGES = 0, 1, 2, 3
"""Columns of a span's line: first position, rows, `visible_end` or 0, and pages."""


class Packed(NamedTuple):
    """Spans as kernels are given them."""

    numbers: Ints
    num_rows: int
    num_positions: int  # the most that a span reads or writes


def pack_rows(spans: Seq[Span], page_size: int, logit_rows: Seq[int]) -> Packed:
    """Rows that read and write their own positions; `page_size` is a multiple of 16."""
    reaches = list(map(reach, spans))
    for span, num_positions in zip(spans, reaches, strict=True):
        # A kernel would go on in the pages of the next.
        assert num_positions <= len(span.page_ids) * page_size, "a span has rows behind its pages"
    num_pages = [-(-num_positions // page_size) for num_positions in reaches]
    return _pack(spans, num_pages, max(reaches), logit_rows)


def reach(span: Span) -> int:
    """How many leading positions are read or written."""
    return max(span.end, span.num_keys)


def pack_drafts(blocks: Seq[Span], page_size: int, lengths: Seq[int]) -> Packed:
    """Drafter blocks, of which the first `lengths` masks get logits."""
    num_pages = [-(-block.start // page_size) for block in blocks]
    for block, count in zip(blocks, num_pages, strict=True):
        assert count <= len(block.page_ids), "a draft has context behind its pages"
    return _pack(blocks, num_pages, max([block.end for block in blocks]), lengths)


def _pack(spans: Seq[Span], num_pages: Seq[int], num_positions: int, rest: Seq[int]) -> Packed:
    """How many spans, rows and pages; a line a span; all tokens, all pages, and the rest."""
    num_rows = sum([len(span.token_ids) for span in spans])
    numbers = [len(spans), num_rows, sum(num_pages)]
    for span, count in zip(spans, num_pages, strict=True):
        numbers += (span.start, len(span.token_ids), span.visible_end or 0, count)
    for span in spans:
        numbers += span.token_ids
    for span, count in zip(spans, num_pages, strict=True):
        numbers += span.page_ids[:count]
    numbers += rest
    return Packed(np.array(numbers), num_rows, num_positions)


@inner_kernel
def unpack(numbers):
    """Views of what was packed: lines [S, 4], tokens [T], pages, and the rest."""
    tokens = 3 + 4 * numbers[0]
    pages = tokens + numbers[1]
    rest = pages + numbers[2]
    lines = numbers[3:tokens].reshape(numbers[0], 4)
    return lines, numbers[tokens:pages], numbers[pages:rest], numbers[rest:]


@inner_kernel
def lay_out(lines, pages, per_page):
    """Rows that read and write their own positions; `per_page` blocks of keys make a page."""
    num_spans, total = len(lines), lines[:, COUNT].sum()
    positions, ends = np.empty(total, np.int64), np.empty(total, np.int64)
    origins, gaps = np.empty(total, np.int64), np.zeros((num_spans, 2), np.int64)
    firsts, tables = np.zeros(num_spans + 1, np.int64), np.zeros(num_spans + 1, np.int64)
    row = 0
    for span in range(num_spans):
        start, visible = lines[span, _START], lines[span, _VISIBLE]
        for position in range(start, start + lines[span, COUNT]):
            positions[row] = position
            ends[row] = visible or position + 1
            origins[row] = start if visible else position
            row += 1
        firsts[span + 1] = row
        tables[span + 1] = tables[span] + lines[span, _PAGES] * per_page
    blocks = np.empty(tables[num_spans], np.int64)
    for i in range(len(blocks)):
        blocks[i] = _block(pages, per_page, i)
    return Rows(positions, positions, ends, origins, firsts, tables, blocks, gaps)


@inner_kernel
def lay_out_drafts(lines, pages, per_page, scratch, num_own):
    """Drafter blocks, that see what stands before them and all of themselves.

    Their own keys and values go to `num_own` blocks each from `scratch` on, which stand behind the
    context's in each table; what is left of the context's last block is the gap.
    """
    num_drafts, width = len(lines), lines[0, COUNT]
    total = num_drafts * width
    positions, places = np.empty(total, np.int64), np.empty(total, np.int64)
    ends, origins = np.empty(total, np.int64), np.empty(total, np.int64)
    spans, tables = np.empty(num_drafts + 1, np.int64), np.zeros(num_drafts + 1, np.int64)
    gaps = np.empty((num_drafts, 2), np.int64)
    for i in range(num_drafts):
        tables[i + 1] = tables[i] + (lines[i, _START] + BLOCK - 1) // BLOCK + num_own
    blocks = np.empty(tables[num_drafts], np.int64)
    first_page = 0
    for i in range(num_drafts):
        start = lines[i, _START]
        used = (start + BLOCK - 1) // BLOCK
        first = used * BLOCK
        spans[i], gaps[i, 0], gaps[i, 1] = i * width, start, first
        for k in range(used):
            blocks[tables[i] + k] = _block(pages[first_page:], per_page, k)
        for k in range(num_own):
            blocks[tables[i] + used + k] = scratch + i * num_own + k
        for k in range(width):
            row = i * width + k
            positions[row], places[row] = start + k, first + k
            ends[row], origins[row] = first + width, start
        first_page += lines[i, _PAGES]
    spans[num_drafts] = total
    return Rows(positions, places, ends, origins, spans, tables, blocks, gaps)


@inner_kernel
def _block(pages, per_page, number):
    """Of the blocks that some pages are, one after the other, the one with this number."""
    return pages[number // per_page] * per_page + number % per_page


def num_scratch_blocks(width: int) -> int:
    """Blocks that the keys of one draft of so many rows take."""
    return -(-width // BLOCK)


@inner_kernel
def wanted_rows(lengths, width):
    """The rows of the first masks of every draft, and where each draft's begin: [R], [S + 1]."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    for i in range(len(lengths)):
        starts[i + 1] = starts[i] + lengths[i]
    wanted = np.empty(starts[len(lengths)], np.int64)
    for i in range(len(lengths)):
        for k in range(lengths[i]):
            wanted[starts[i] + k] = i * width + k + 1
    return wanted, starts
