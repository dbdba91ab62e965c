"""What the ways of generating share whose output is the diffusion model's own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence as Seq
from typing import ClassVar

from engine.decoding.diffusion_sampler import DiffusionSampler
from engine.generation.canvas_reader import CanvasReader
from engine.generation.diffusion_reader import Block, DiffusionReader
from engine.generation.masked_block import MaskedBlock
from engine.generation.strategy import (
    GenerationStrategy,
    ModelRole,
    Rows,
    RowsOutput,
    StrategyContext,
)
from engine.generation.unmasking import Denoised, reveal
from engine.models.diffusion_lm import ContextKind
from engine.request.errors import InvalidRequestError
from engine.request.options import CanvasCache, GenerationOptions
from engine.request.outputs import StepTrace
from engine.request.sampling_params import SamplingParams
from engine.request.sequence import Sequence

DEFAULT_CANVAS = 128
"""Tokens of a canvas whose length nobody says: a whole context of masks would be slow and odd."""


class Denoising(GenerationStrategy):
    """Keeps a block of every sequence under way; a step is one forward, which reveals some masks.

    A block outlives a pre-emption, which costs only its context's KV. After a replay it is written
    anew, with the same noise; where a token was given out before, that one stands.
    """

    needs: ClassVar[frozenset[ModelRole]] = frozenset({ModelRole.DIFFUSION})
    is_lossless: ClassVar[bool] = False
    reads_with_verifier: ClassVar[bool] = False
    keeps_grammars: ClassVar[bool] = False

    def __init__(self, context: StrategyContext) -> None:
        super().__init__(context)
        assert context.diffusion is not None
        self.config = context.diffusion
        self._reader = DiffusionReader(self.config)
        self._canvas_reader = CanvasReader(self.config)
        self._blocks: dict[str, MaskedBlock] = {}

    @abstractmethod
    def new_block(self, sequence: Sequence) -> MaskedBlock:
        """What is to be denoised next, as it is before its first forward."""

    @abstractmethod
    def take(self, sequence: Sequence, block: MaskedBlock) -> list[int]:
        """What of a block can be committed now."""

    @abstractmethod
    def canvas_end(self, sequence: Sequence) -> int:
        """How far a bidirectional model sees: to the end of what is to be written."""

    @abstractmethod
    def cache(self, sequence: Sequence) -> CanvasCache:
        """What a bidirectional model may keep within a block."""

    def check(
        self, num_prompt_tokens: int, params: SamplingParams, options: GenerationOptions
    ) -> None:
        limit = params.max_tokens
        if limit is None:
            limit = self.default_max_tokens(num_prompt_tokens, options)
        check_limits(params, limit)
        DiffusionSampler.of(options)

    def num_written(self, sequence: Sequence, block: MaskedBlock) -> int | None:
        """How many output tokens had been committed when the block stood as it does; None: all."""
        return None

    def max_rows(self, sequence: Sequence) -> int:
        block = self.block(sequence)
        return 1 + self.max_positions(sequence) - block.start

    def max_positions(self, sequence: Sequence) -> int:
        if self.config.context is ContextKind.BIDIRECTIONAL:
            return self.canvas_end(sequence)
        return self.block(sequence).end

    def propose(self, sequences: Seq[Sequence], drafted: Seq[RowsOutput]) -> list[Rows]:
        rows = []
        for sequence in sequences:
            block = self.block(sequence)
            num_written = self.num_written(sequence, block)
            rows.append(self._rows(sequence, block)._replace(num_written=num_written))
        return rows

    def accept(self, outputs: Seq[RowsOutput]) -> list[list[int]]:
        """The rows with logits have gone through the block; the others have only been read."""
        denoised = [
            Denoised(self.block(output.rows.sequence), output)
            for output in outputs
            if output.rows.num_logits
        ]
        reveal(denoised)
        for block, output in denoised:
            self.settle(output.rows.sequence, block)
        return [
            self._take_shown(output.rows.sequence) if output.rows.num_logits else []
            for output in outputs
        ]

    def settle(self, sequence: Sequence, block: MaskedBlock) -> None:
        """Let what was given out before stand where the block has revealed it."""
        for place, token_id in enumerate(sequence.token_ids[block.start : block.end]):
            if block.token_ids[place] is not None:
                block.token_ids[place] = token_id

    def block(self, sequence: Sequence) -> MaskedBlock:
        """The block that is under way."""
        block = self._blocks.get(sequence.sequence_id)
        if block is None:
            block = self._blocks[sequence.sequence_id] = self.new_block(sequence)
        return block

    def drop_block(self, sequence: Sequence) -> None:
        self._blocks.pop(sequence.sequence_id, None)

    def release(self, sequence: Sequence) -> None:
        self.drop_block(sequence)
        self._reader.forget(sequence)
        self._canvas_reader.forget(sequence)

    def _take_shown(self, sequence: Sequence) -> list[int]:
        """What can be committed; what is revealed beyond it may be looked at."""
        block = self.block(sequence)
        taken = self.take(sequence, block)
        if sequence.options.shows_steps and not sequence.options.suffixes:
            first = sequence.num_tokens + len(taken) - block.start
            sequence.trace = StepTrace(pending=tuple(block.token_ids[first:]))
        return taken

    def _rows(self, sequence: Sequence, block: MaskedBlock) -> Rows:
        if self.config.context is ContextKind.BIDIRECTIONAL:
            end, cache = self.canvas_end(sequence), self.cache(sequence)
            return self._canvas_reader.rows(sequence, block, end, cache)
        if self._reader.is_behind(sequence, block.start):
            return self._reader.reading_rows(sequence, is_final=True)
        asked = block.asked
        rows = Block(
            block.filled(self.config.mask_token_id),
            len(asked),
            block.num_forwards,
            is_final=True,
            num_tail=len(block.token_ids) - asked.stop,
        )
        return self._reader.block_rows(sequence, rows, sequence.token_ids[: block.start])


def check_limits(params: SamplingParams, max_tokens: int | None) -> None:
    """Raise `InvalidRequestError` for what no text has that is denoised.

    `max_tokens` is what will be written at most, where that is known.
    """
    if params.logprobs is not None or params.prompt_logprobs:
        name = "prompt_logprobs" if params.logprobs is None else "logprobs"
        message = f"{name}: tokens revealed in any order have no log-probability after a prefix"
        raise InvalidRequestError(message, name)
    if max_tokens == 0:
        raise InvalidRequestError("max_tokens must be at least 1 in this mode", "max_tokens")
    if max_tokens is not None and params.min_tokens > max_tokens:
        message = f"min_tokens is {params.min_tokens}, but only {max_tokens} tokens are written"
        raise InvalidRequestError(message, "min_tokens")
