"""Adaptive parallel decoding: many masks drawn at once, and as many kept as seem right. Lossy.

Israel et al., "Accelerating diffusion LLMs via adaptive parallel decoding" (arXiv 2506.00413). With
a verifier the diffusion model's tokens stand while a mixture of both distributions draws the same
with the same noise; without one they stand while the model is sure of them.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import ClassVar

import torch
from torch import Tensor

from engine.decoding.apd import AdaptiveThreshold, APDRule, count_confident
from engine.decoding.diffusion_sampler import DiffusionSampler
from engine.generation.apd_form import APDForm, check_form, choose_form
from engine.generation.apd_window import WindowReader
from engine.generation.diffusion_reader import Block, DiffusionReader
from engine.generation.forwards import verify_pick
from engine.generation.strategy import (
    GenerationStrategy,
    ModelRole,
    Rows,
    RowsOutput,
    StrategyContext,
)
from engine.models.diffusion_lm import ContextKind
from engine.request.errors import InvalidRequestError
from engine.request.options import GenerationOptions
from engine.request.outputs import Ending, FinishReason
from engine.request.sampling_params import SamplingParams
from engine.request.sequence import Sequence

DEFAULT_THRESHOLD = 0.9


class APD(GenerationStrategy):
    """Commits the leading part of what the diffusion model drew; its first token always stands.

    Options that a request leaves open: R is 0.5; M is the longest draft; the threshold begins at
    0.9 and then follows the confidence of what it lets through, while a given one is fixed.
    """

    needs: ClassVar[frozenset[ModelRole]] = frozenset({ModelRole.DIFFUSION})
    honours: ClassVar[frozenset[str]] = frozenset(
        {
            "apd_lookahead",
            "apd_max_parallel",
            "apd_mix_weight",
            "apd_threshold",
            "apd_window",
            "confidence_threshold",
        }
    )
    is_lossless: ClassVar[bool] = False
    resumes_with_verifier: ClassVar[bool] = False
    keeps_grammars: ClassVar[bool] = False

    def __init__(self, context: StrategyContext) -> None:
        super().__init__(context)
        assert context.diffusion is not None, "needs a diffusion model"
        self._config = context.diffusion
        self._has_verifier = len(context.verify_costs) > 0
        self._reader = DiffusionReader(self._config)
        self._window_reader = WindowReader(self._config.mask_token_id)
        self._drafts: dict[str, RowsOutput] = {}
        self._thresholds: dict[str, AdaptiveThreshold] = {}

    @property
    def shares_pages(self) -> bool:
        return self._has_verifier and self._config.kv_is_prefix_function

    def reads_prompt(self, sequence: Sequence) -> bool:
        return self._form(sequence) is APDForm.MIXTURE

    def check(
        self, num_prompt_tokens: int, params: SamplingParams, options: GenerationOptions
    ) -> None:
        check_form(options, has_verifier=self._has_verifier)
        self._check_knobs(options)
        options = options.with_defaults(self.context.defaults)
        form = choose_form(options, has_verifier=self._has_verifier)
        if form is APDForm.THRESHOLD and params.prompt_logprobs:
            message = "prompt_logprobs need a verifier that reads the prompt"
            raise InvalidRequestError(message, "prompt_logprobs")

    def max_rows(self, sequence: Sequence) -> int:
        return self._lookahead(sequence)

    def max_positions(self, sequence: Sequence) -> int:
        return sequence.num_tokens + self._num_masks(sequence)

    def propose(self, sequences: Seq[Sequence], drafted: Seq[RowsOutput]) -> list[Rows]:
        if drafted:
            self._drafts = {output.rows.sequence.sequence_id: output for output in drafted}
            return [self._verify_rows(sequence) for sequence in sequences]
        self._drafts.clear()
        return [
            self._denoise_rows(seq, is_final=self._form(seq) is APDForm.THRESHOLD)
            for seq in sequences
        ]

    def accept(self, outputs: Seq[RowsOutput]) -> list[list[int]]:
        verified = [o for o in outputs if o.rows.model is ModelRole.VERIFIER]
        mixed = iter(self._accept_mixed(verified))
        return [
            next(mixed) if o.rows.model is ModelRole.VERIFIER else self._accept_sure(o)
            for o in outputs
        ]

    def ending(self, sequence: Sequence) -> Ending | None:
        # max_tokens 0: no token will come to end it.
        return Ending(FinishReason.LENGTH) if sequence.num_remaining <= 0 else None

    def release(self, sequence: Sequence) -> None:
        self._reader.forget(sequence)
        self._window_reader.forget(sequence)
        self._drafts.pop(sequence.sequence_id, None)
        self._thresholds.pop(sequence.sequence_id, None)

    def _form(self, sequence: Sequence) -> APDForm:
        return choose_form(sequence.options, has_verifier=self._has_verifier)

    def _check_knobs(self, options: GenerationOptions) -> None:
        if options.apd_window is not None and not self._has_window:
            message = "apd_window is for bidirectional models: this one's keys and values are exact"
            raise InvalidRequestError(message, "apd_window")
        longest = self._longest_block
        if options.apd_lookahead is not None and options.apd_lookahead > longest:
            message = f"apd_lookahead must be at most {longest}, got {options.apd_lookahead}"
            raise InvalidRequestError(message, "apd_lookahead")

    @property
    def _has_window(self) -> bool:
        return self._config.context is ContextKind.BIDIRECTIONAL

    @property
    def _longest_block(self) -> int:
        is_bound = self._config.context is ContextKind.BLOCK_CAUSAL
        length = self._config.block_length if is_bound else None
        return length or self.context.max_model_len

    def _lookahead(self, sequence: Sequence) -> int:
        wanted = sequence.options.apd_lookahead or self.context.max_draft_length
        return min(wanted, self._longest_block)

    def _num_masks(self, sequence: Sequence) -> int:
        """Without the room for a bonus token that drafts leave: none is committed here."""
        return min(self._lookahead(sequence), sequence.num_remaining)

    def _denoise_rows(self, sequence: Sequence, *, is_final: bool) -> Rows:
        """Masks after the sequence; or the next piece of a context that is too long for one go."""
        count = self._num_masks(sequence)
        if sequence.options.apd_window is not None and self._has_window:
            window = sequence.options.apd_window
            return self._window_reader.block_rows(sequence, count, window, is_final=is_final)
        if self._reader.is_behind(sequence):
            # Final in both forms: what is committed must not hang on how much had to be read.
            return self._reader.reading_rows(sequence, is_final=True)
        masks = [self._config.mask_token_id] * count
        return self._reader.block_rows(sequence, Block(masks, count, is_final=is_final))

    def _verify_rows(self, sequence: Sequence) -> Rows:
        """The last token and all but the last that was drawn: each row judges the next token."""
        draft = self._drafts[sequence.sequence_id]
        token_ids = [sequence.token_ids[-1], *draft.token_ids[:-1]]
        start = sequence.num_tokens - 1
        return Rows(sequence, ModelRole.VERIFIER, token_ids, start, len(token_ids))

    def _accept_mixed(self, outputs: Seq[RowsOutput]) -> list[list[int]]:
        """The tokens that the mixture draws, too."""
        if not outputs:
            return []
        drafts = [self._drafts[output.rows.sequence.sequence_id] for output in outputs]
        logits = torch.cat([_mixed(*pair) for pair in zip(drafts, outputs, strict=True)])
        picks = [verify_pick(output.rows) for output in outputs]
        drawn = self.context.sampler.sample(logits, picks)
        commits = []
        for output, draft, target in zip(outputs, drafts, drawn, strict=True):
            x = draft.token_ids
            sequence = output.rows.sequence
            count = _rule(sequence).count_accepted(x, target)
            sequence.record_draft(len(x) - 1, count - 1)  # the first is not judged
            commits.append(x[:count])
        return commits

    def _accept_sure(self, output: RowsOutput) -> list[int]:
        sequence, token_ids = output.rows.sequence, output.token_ids
        if not token_ids:
            return []  # only read
        drawn = torch.tensor(token_ids, device=output.logits.device)
        confidences = DiffusionSampler().confidence(output.logits, drawn).tolist()
        threshold = self._threshold(sequence)
        limit = sequence.options.apd_max_parallel
        count = count_confident(confidences, threshold.value, limit)
        quality = sum(confidences[:count]) / count
        self._thresholds[sequence.sequence_id] = threshold.update(min(quality, 1.0))
        sequence.record_draft(len(token_ids) - 1, count - 1)
        return token_ids[:count]

    def _threshold(self, sequence: Sequence) -> AdaptiveThreshold:
        given = sequence.options.confidence_threshold
        given = sequence.options.apd_threshold if given is None else given
        if given is not None:
            return AdaptiveThreshold(given, low=given, high=given)
        known = self._thresholds.get(sequence.sequence_id)
        return known or AdaptiveThreshold(DEFAULT_THRESHOLD)


def _mixed(draft: RowsOutput, verified: RowsOutput) -> Tensor:
    """Logits [M, V] of the mixture, row for row at the same position."""
    return _rule(verified.rows.sequence).mixed_logits(draft.logits, verified.logits)


def _rule(sequence: Sequence) -> APDRule:
    weight = sequence.options.apd_mix_weight
    return APDRule() if weight is None else APDRule(weight)
