"""Rows of a bidirectional diffusion model: a canvas, and what is kept of it within a block.

Fast-dLLM's caches (arXiv 2505.22618, section 3.2): the keys and values of one forward over the
whole canvas stand for those of the block's later forwards. An approximation, as every token sees
every other; where a model has one layer it is none.
"""

from __future__ import annotations

from typing import NamedTuple

from engine.generation.masked_block import MaskedBlock
from engine.generation.strategy import ModelRole, Piece, Rows
from engine.models.diffusion_lm import DiffusionConfig
from engine.request.options import CanvasCache
from engine.request.sequence import Sequence


class _Kept(NamedTuple):
    num_preemptions: int  # pages that were given up since have taken what was kept with them
    block_start: int


class CanvasReader:
    """Remembers of each sequence for which block its pages hold the rest of the canvas."""

    def __init__(self, config: DiffusionConfig) -> None:
        self._shift = int(config.logit_shift)
        self._mask = config.mask_token_id
        self._kept: dict[str, _Kept] = {}

    def rows(
        self, sequence: Sequence, block: MaskedBlock, canvas_end: int, cache: CanvasCache
    ) -> Rows:
        """Rows for one denoising step of a block in a canvas that ends at `canvas_end`.

        After a pre-emption they only read the canvas again, as it was when the block began: then
        what follows is what it would have been.
        """
        if cache is CanvasCache.NONE:
            return self._rows(sequence, block, 0, canvas_end, canvas_end)
        kept = _Kept(sequence.num_preemptions, block.start)
        is_kept = self._kept.get(sequence.sequence_id) == kept
        self._kept[sequence.sequence_id] = kept
        if not is_kept:
            if block.num_forwards:
                return self._reading_rows(sequence, block, canvas_end)
            return self._rows(sequence, block, 0, canvas_end, canvas_end)
        end = block.end if cache is CanvasCache.DUAL else canvas_end
        return self._rows(sequence, block, block.start - self._shift, end, canvas_end)

    def forget(self, sequence: Sequence) -> None:
        self._kept.pop(sequence.sequence_id, None)

    def _rows(
        self, sequence: Sequence, block: MaskedBlock, start: int, end: int, canvas_end: int
    ) -> Rows:
        """Of the canvas what lies from start to end; all of it is seen."""
        after = [self._mask] * (end - block.end)
        known = sequence.token_ids[start : block.start]
        token_ids = [*known, *block.filled(self._mask), *after]
        return Rows(
            sequence,
            ModelRole.DIFFUSION,
            token_ids,
            start,
            len(block.asked),
            [Piece(len(token_ids), canvas_end)],
            denoising_step=block.num_forwards,
            num_tail=end - block.start - block.asked.stop,
        )

    def _reading_rows(self, sequence: Sequence, block: MaskedBlock, canvas_end: int) -> Rows:
        masks = [self._mask] * (canvas_end - block.start)
        token_ids = [*sequence.token_ids[: block.start], *masks]
        pieces = [Piece(canvas_end, canvas_end)]
        return Rows(sequence, ModelRole.DIFFUSION, token_ids, 0, 0, pieces)
