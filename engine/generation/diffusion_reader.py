"""Rows of a diffusion model: what it has not read of a sequence yet, and the block after that."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from engine.generation.read_progress import ReadProgress
from engine.generation.strategy import ModelRole, Piece, Rows
from engine.models.diffusion_lm import ContextKind, DiffusionConfig
from engine.request.sequence import Sequence

MAX_READ_ROWS = 512
"""Rows of a context that are read at once: a longer one takes several steps."""


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens and masks after the known tokens, and how to ask for them."""

    token_ids: Seq[int]
    num_logits: int  # of the last tokens, but for the tail
    denoising_step: int = 0
    is_final: bool = False
    num_tail: int = 0


class DiffusionReader:
    """Remembers how much of each sequence has lasting KV in the diffusion model's pool.

    A causal context is read once, token by token; a block-causal one in whole blocks; in a
    bidirectional model nothing lasts, and every forward begins at position 0.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        self._progress = ReadProgress()

    def num_read(self, sequence: Sequence) -> int:
        return self._progress.num_read(sequence)

    def num_readable(self, num_known: int) -> int:
        """How many of the known tokens can get lasting KV before the rest of the text is known."""
        match self.config.context:
            case ContextKind.CAUSAL:
                return num_known - 1  # the last one is the anchor of the next block
            case ContextKind.BLOCK_CAUSAL:
                return num_known - num_known % self._block_length
            case ContextKind.BIDIRECTIONAL:
                return 0

    def is_behind(self, sequence: Sequence, num_known: int | None = None) -> bool:
        """Whether there is more to read than one forward should, before all or `num_known`."""
        return self.num_unread(sequence, num_known) > MAX_READ_ROWS

    def num_unread(self, sequence: Sequence, num_known: int | None = None) -> int:
        """Tokens that can get lasting KV and have none yet."""
        num_known = sequence.num_tokens if num_known is None else num_known
        return self.num_readable(num_known) - self.num_read(sequence)

    def reading_rows(self, sequence: Sequence, *, is_final: bool) -> Rows:
        """The next piece of a long context; asks for no logits."""
        start = self.num_read(sequence)
        end = start + MAX_READ_ROWS
        if self.config.context is ContextKind.BLOCK_CAUSAL:
            end = max(end, start + self._block_length)
            end -= end % self._block_length
        pieces = list(self._context_pieces(start, end))
        self._progress.note(sequence, end)
        token_ids = sequence.token_ids[start:end]
        return Rows(sequence, ModelRole.DIFFUSION, token_ids, start, 0, pieces, is_final)

    def block_rows(self, sequence: Sequence, block: Block, known: Seq[int] | None = None) -> Rows:
        """Rows for a block after the `known` tokens (the sequence's own), with what is unread."""
        known = sequence.token_ids if known is None else known
        start, readable = self.num_read(sequence), self.num_readable(len(known))
        end = len(known) + len(block.token_ids)
        pieces = list(self._context_pieces(start, readable))
        if self.config.logit_shift and 0 < start == readable == len(known):
            start -= 1  # the row before the block predicts its first token: it is read once more
            pieces = [Piece(1, readable)]
        pieces.append(Piece(end - readable, end))
        self._progress.note(sequence, readable)
        token_ids = [*known[start:], *block.token_ids]
        return Rows(
            sequence,
            ModelRole.DIFFUSION,
            token_ids,
            start,
            block.num_logits,
            pieces,
            block.is_final,
            block.denoising_step,
            block.num_tail,
        )

    def forget(self, sequence: Sequence) -> None:
        self._progress.forget(sequence)

    @property
    def _block_length(self) -> int:
        assert self.config.block_length is not None, "block-causal models have a block length"
        return self.config.block_length

    def _context_pieces(self, start: int, end: int) -> Iterator[Piece]:
        if start >= end:
            return
        if self.config.context is ContextKind.CAUSAL:
            yield Piece(end - start)
            return
        for block_start in range(start, end, self._block_length):
            yield Piece(self._block_length, block_start + self._block_length)
