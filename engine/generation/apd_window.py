"""Blocks of a bidirectional model that reads only the last tokens of a context anew.

The window of adaptive parallel decoding (Israel et al., arXiv 2506.00413): keys and values left of
it stand as an earlier forward has made them, though the text has grown since. An approximation.
"""

from __future__ import annotations

from engine.generation.read_progress import ReadProgress
from engine.generation.strategy import ModelRole, Piece, Rows
from engine.request.sequence import Sequence


class WindowReader:
    """Remembers how many leading tokens of each sequence have been read at all."""

    def __init__(self, mask_token_id: int) -> None:
        self._mask_token_id = mask_token_id
        self._progress = ReadProgress()

    def block_rows(
        self, sequence: Sequence, num_masks: int, window: int, *, is_final: bool
    ) -> Rows:
        """The last `window` tokens, more where they have never been read, and masks after them."""
        num_known = sequence.num_tokens
        start = max(0, min(self._progress.num_read(sequence), num_known - window))
        self._progress.note(sequence, num_known)
        end = num_known + num_masks
        return Rows(
            sequence,
            ModelRole.DIFFUSION,
            [*sequence.token_ids[start:], *[self._mask_token_id] * num_masks],
            start,
            num_masks,
            [Piece(end - start, end)],
            is_final,
        )

    def forget(self, sequence: Sequence) -> None:
        self._progress.forget(sequence)
