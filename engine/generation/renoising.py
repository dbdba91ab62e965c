"""Canvas after canvas of random tokens, from left to right: what `semi_ar` is without a mask token.

DiffusionGemma's way of writing, as transformers 5.23 has it (models/diffusion_gemma): after each
pass over a canvas the tokens that the rule accepts stand for the next one, the others are drawn
anew at random; in the end the canvas holds the most probable tokens of its last pass.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from engine.base import EntropyComputer
from engine.decoding.entropy_bound import MAX_STEPS, EntropyBound
from engine.decoding.noise import NoiseStream, integers
from engine.decoding.sampling_table import SamplingTable
from engine.generation.denoising import check_limits
from engine.generation.diffusion_reader import MAX_READ_ROWS
from engine.generation.read_progress import ReadProgress
from engine.generation.strategy import (
    GenerationStrategy,
    ModelRole,
    Piece,
    Rows,
    RowsOutput,
    StrategyContext,
)
from engine.request.errors import InvalidRequestError
from engine.request.options import GenerationOptions
from engine.request.sampling_params import SamplingParams
from engine.request.sequence import Sequence

_entropy = EntropyComputer()


@dataclass
class _Canvas:
    """Tokens at positions start, start + 1, ..., none of which is final before all are."""

    start: int
    token_ids: list[int]
    """As the next pass reads them."""
    num_passes: int = 0
    guesses: list[list[int]] = field(default_factory=list)
    """The most probable tokens of the last passes, as many as the rule compares."""
    feedback: Tensor | None = None

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


class Renoising(GenerationStrategy):
    """Commits a canvas when it has stood still, or has had all of its passes.

    The request's temperature and filters say how candidates are drawn, on top of the model's own
    schedule of temperatures; which of them stand, and what is written in the end, is said by the
    distribution before them. A canvas is never shorter than the model's, but where the context
    ends; what lies beyond max_tokens or an end of text is not committed. A canvas outlives a
    pre-emption, and a replay writes it anew with the same noise.
    """

    needs: ClassVar[frozenset[ModelRole]] = frozenset({ModelRole.CANVAS})
    honours: ClassVar[frozenset[str]] = frozenset({"denoising_steps"})
    is_lossless: ClassVar[bool] = False
    reads_with_verifier: ClassVar[bool] = False
    keeps_grammars: ClassVar[bool] = False

    def __init__(self, context: StrategyContext) -> None:
        super().__init__(context)
        assert context.canvas is not None
        self._config = context.canvas
        self._canvases: dict[str, _Canvas] = {}
        self._progress = ReadProgress()

    def check(
        self, num_prompt_tokens: int, params: SamplingParams, options: GenerationOptions
    ) -> None:
        check_limits(params, params.max_tokens)
        if (options.denoising_steps or 0) > MAX_STEPS:
            message = f"denoising_steps must be at most {MAX_STEPS}, got {options.denoising_steps}"
            raise InvalidRequestError(message, "denoising_steps")

    def max_rows(self, sequence: Sequence) -> int:
        return self.max_positions(sequence) - self._progress.num_read(sequence)

    def max_positions(self, sequence: Sequence) -> int:
        return self._canvas(sequence).end

    def propose(self, sequences: Seq[Sequence], drafted: Seq[RowsOutput]) -> list[Rows]:
        return [self._rows(sequence, self._canvas(sequence)) for sequence in sequences]

    def accept(self, outputs: Seq[RowsOutput]) -> list[list[int]]:
        """The rows with logits are canvases; the others have only been read."""
        return [self._accept(output) if output.rows.num_logits else [] for output in outputs]

    def release(self, sequence: Sequence) -> None:
        self._canvases.pop(sequence.sequence_id, None)
        self._progress.forget(sequence)

    def _canvas(self, sequence: Sequence) -> _Canvas:
        """The one that is under way."""
        canvas = self._canvases.get(sequence.sequence_id)
        if canvas is None:
            length = self._config.canvas_length
            start = sequence.num_tokens - sequence.num_output_tokens % length
            end = min(start + length, self.context.max_model_len)
            canvas = _Canvas(start, self._noise(sequence, range(start, end), 0))
            self._canvases[sequence.sequence_id] = canvas
        return canvas

    def _rows(self, sequence: Sequence, canvas: _Canvas) -> Rows:
        """What is unread of the text, and after it the canvas; of a long text a piece alone."""
        start = self._progress.num_read(sequence)
        end = min(canvas.start, start + MAX_READ_ROWS)
        self._progress.note(sequence, end)
        text = sequence.token_ids[start:end]
        pieces = [Piece(len(text))] if text else []
        if end < canvas.start:
            return Rows(sequence, ModelRole.DIFFUSION, text, start, 0, pieces)
        return Rows(
            sequence,
            ModelRole.DIFFUSION,
            [*text, *canvas.token_ids],
            start,
            len(canvas.token_ids),
            [*pieces, Piece(len(canvas.token_ids), canvas.end)],
            denoising_step=canvas.num_passes,
            temperature=self._rule(sequence).temperature(canvas.num_passes),
            feedback=canvas.feedback,
        )

    def _accept(self, output: RowsOutput) -> list[int]:
        """What of the canvas is to be committed: all of it after its last pass, else nothing."""
        sequence = output.rows.sequence
        canvas, rule = self._canvas(sequence), self._rule(sequence)
        canvas.num_passes += 1
        entropies = _entropy(output.logits)
        guess: list[int] = output.logits.argmax(-1).tolist()
        is_last = canvas.num_passes == rule.num_steps
        if is_last or rule.is_done(float(entropies.mean()), guess, canvas.guesses):
            del self._canvases[sequence.sequence_id]
            return guess[sequence.num_tokens - canvas.start :]
        stands = rule.accepted(entropies).tolist()
        noise = self._noise(sequence, range(canvas.start, canvas.end), canvas.num_passes)
        choices = zip(output.token_ids, noise, stands, strict=True)
        canvas.token_ids = [drawn if is_kept else random for drawn, random, is_kept in choices]
        guesses = [*canvas.guesses, guess]
        canvas.guesses = guesses[max(0, len(guesses) - rule.stability_threshold) :]
        canvas.feedback = output.feedback
        return []

    def _rule(self, sequence: Sequence) -> EntropyBound:
        rule, num_steps = self._config.rule, sequence.options.denoising_steps
        return rule if num_steps is None else replace(rule, num_steps=num_steps)

    def _noise(self, sequence: Sequence, positions: range, num_passes: int) -> list[int]:
        """Random tokens, a function of the request and of where and when they are drawn."""
        entry = (sequence.params, sequence.prompt_index, sequence.choice)
        table = SamplingTable.build([entry])
        own = torch.tensor(positions) - sequence.num_prompt_tokens
        steps = torch.full_like(own, NoiseStream.RENOISING + num_passes)
        seeds, prompts, choices = (
            column.expand_as(own) for column in (table.seed, table.prompt_index, table.choice)
        )
        tokens: list[int] = integers(
            seeds, prompts, choices, own, steps, self._config.vocab_size
        ).tolist()
        return tokens
