"""Semi-autoregressive: blocks from left to right, diffusion inside each, no verifier.

LLaDA's semi-autoregressive remasking (arXiv 2502.09992, section 2.4) and block diffusion (BD3-LM,
arXiv 2503.09573): the keys and values of finished blocks are kept, exactly where the model's
context is causal or block-causal, and within a block approximately where it is bidirectional.
"""

from __future__ import annotations

from typing import ClassVar

from engine.generation.denoising import DEFAULT_CANVAS, Denoising
from engine.generation.masked_block import MaskedBlock
from engine.generation.renoising import Renoising
from engine.generation.strategy import GenerationStrategy, ModelRole, StrategyContext
from engine.models.diffusion_lm import ContextKind
from engine.request.errors import InvalidRequestError
from engine.request.options import CanvasCache, GenerationOptions
from engine.request.sampling_params import SamplingParams
from engine.request.sequence import Sequence

DEFAULT_BLOCK = 32  # of LLaDA
SHORT_BLOCK = 8
"""Default where the context is causal: masks behind an end of text are wasted, and with the shipped
model that outweighs what a longer block reveals at once (1.2 against 0.8 tokens a forward)."""


class SemiAR(Denoising):
    """Commits a block when its last mask is revealed, or when it has come to an end of text.

    A bidirectional model is given masks up to max_tokens from the start, as it was trained; where
    that is absent it is at most 128.
    """

    honours: ClassVar[frozenset[str]] = frozenset(
        {
            "block_length",
            "canvas_cache",
            "confidence_threshold",
            "denoising_steps",
            "remasking",
            "unmasking_factor",
        }
    )

    @classmethod
    def can_run(cls, available: frozenset[ModelRole]) -> bool:
        return super().can_run(available) or Renoising.can_run(available)

    @classmethod
    def make(cls, context: StrategyContext) -> GenerationStrategy:
        """Where there are no masks to be filled in, another strategy goes from left to right."""
        return cls(context) if context.canvas is None else Renoising(context)

    def check(
        self, num_prompt_tokens: int, params: SamplingParams, options: GenerationOptions
    ) -> None:
        super().check(num_prompt_tokens, params, options)
        trained = self._trained_length
        if options.block_length not in (None, trained) and trained is not None:
            message = f"block_length must be {trained}: the model reads its text in such blocks"
            raise InvalidRequestError(message, "block_length")
        if options.canvas_cache and self.config.context is not ContextKind.BIDIRECTIONAL:
            message = "canvas_cache is for bidirectional models: here what is kept is exact"
            raise InvalidRequestError(message, "canvas_cache")

    def default_max_tokens(self, num_prompt_tokens: int, options: GenerationOptions) -> int | None:
        if self.config.context is not ContextKind.BIDIRECTIONAL:
            return None
        return min(DEFAULT_CANVAS, self.context.max_model_len - num_prompt_tokens)

    def new_block(self, sequence: Sequence) -> MaskedBlock:
        """The block in which the next token lies; what is known of it has been the prompt's.

        Its blocks are counted from the prompt's end, those of a block-causal model from position 0.
        """
        num_prompt, trained = sequence.num_prompt_tokens, self._trained_length
        is_causal = self.config.context is ContextKind.CAUSAL
        default = SHORT_BLOCK if is_causal else DEFAULT_BLOCK
        length = trained or sequence.options.block_length or default
        offset = 0 if trained else num_prompt
        start = sequence.num_tokens - (sequence.num_tokens - offset) % length
        end = min(start + length, num_prompt + sequence.max_output_tokens)
        known = sequence.token_ids[start:num_prompt]
        return MaskedBlock.of(start, known, end - start - len(known))

    def take(self, sequence: Sequence, block: MaskedBlock) -> list[int]:
        written = block.prefix(sequence.num_tokens - block.start)
        if not (block.is_finished or _has_end(sequence, written)):
            return []
        self.drop_block(sequence)
        return written

    def canvas_end(self, sequence: Sequence) -> int:
        return sequence.num_prompt_tokens + sequence.max_output_tokens

    def cache(self, sequence: Sequence) -> CanvasCache:
        return sequence.options.canvas_cache or CanvasCache.DUAL

    @property
    def _trained_length(self) -> int | None:
        """That of a model whose blocks are aligned to position 0."""
        is_aligned = self.config.context is ContextKind.BLOCK_CAUSAL
        return self.config.block_length if is_aligned else None


def _has_end(sequence: Sequence, written: list[int]) -> bool:
    first = sequence.num_output_tokens + 1
    return any(sequence.is_end(token_id, n) for n, token_id in enumerate(written, first))
