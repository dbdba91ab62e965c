"""Pure diffusion: the whole answer is one canvas of masks, revealed in any order.

LLaDA's generation without blocks (arXiv 2502.09992, section 2.4). As tokens of the canvas may be
given, it also fills in: the text goes on after each of its holes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, NamedTuple

from engine.generation.denoising import DEFAULT_CANVAS, Denoising
from engine.generation.masked_block import MaskedBlock
from engine.models.diffusion_lm import ContextKind
from engine.request.errors import InvalidRequestError
from engine.request.options import CanvasCache, GenerationOptions
from engine.request.outputs import Ending, FinishReason
from engine.request.sampling_params import SamplingParams
from engine.request.sequence import Sequence


class _Written(NamedTuple):
    """What the holes hold up to the first mask that is left."""

    token_ids: list[int]
    hole_lengths: list[int]  # of the holes that are whole
    num_full: int  # of these, how many did not end by themselves


class Canvas(Denoising):
    """Commits what is revealed without a gap from the start: a stream only ever grows.

    An absent max_tokens means 128, or what room there is; denoising_steps counts the forwards of
    the whole canvas. With `suffixes` the holes before them share max_tokens evenly, the first ones
    getting one more where that does not divide; output is what the holes hold, one after the other,
    and `SequenceSummary.hole_lengths` tells them apart. An end of text ends its hole alone, and is
    not part of the output then.
    """

    honours: ClassVar[frozenset[str]] = frozenset(
        {
            "confidence_threshold",
            "denoising_steps",
            "remasking",
            "suffixes",
            "unmasking_factor",
        }
    )

    def check(
        self, num_prompt_tokens: int, params: SamplingParams, options: GenerationOptions
    ) -> None:
        super().check(num_prompt_tokens, params, options)
        limit = params.max_tokens or self.default_max_tokens(num_prompt_tokens, options)
        if limit < len(options.suffixes):
            message = f"max_tokens must be at least 1 for each of {len(options.suffixes)} holes"
            raise InvalidRequestError(message, "max_tokens")
        if len(options.suffixes) > 1:
            _refuse_in_holes("stop", params.stop)
            _refuse_in_holes("min_tokens", params.min_tokens)
        longest = self._longest(num_prompt_tokens)
        if longest is not None and limit + options.num_suffix_tokens > longest:
            message = (
                f"the model sees no more than a block of {self.config.block_length} at once, and "
                f"{longest} tokens are left of this one: use mode semi_ar for longer texts"
            )
            raise InvalidRequestError(message, "max_tokens")

    def default_max_tokens(self, num_prompt_tokens: int, options: GenerationOptions) -> int:
        room = self.context.max_model_len - num_prompt_tokens
        longest = self._longest(num_prompt_tokens) or room
        return max(0, min(DEFAULT_CANVAS, min(room, longest) - options.num_suffix_tokens))

    def new_block(self, sequence: Sequence) -> MaskedBlock:
        """The canvas; for a block-causal model with what its block has of the prompt."""
        num_prompt, suffixes = sequence.num_prompt_tokens, sequence.options.suffixes
        start = num_prompt
        if self.config.context is ContextKind.BLOCK_CAUSAL:
            assert self.config.block_length is not None
            start -= num_prompt % self.config.block_length
        canvas: list[int | None] = [*sequence.token_ids[start:num_prompt]]
        for length, suffix in zip(_sizes(sequence), suffixes or ((),), strict=True):
            canvas += [None] * length
            canvas += suffix
        return MaskedBlock(start, canvas)

    def settle(self, sequence: Sequence, block: MaskedBlock) -> None:
        """What was given out stands; with several holes nobody knows where it was."""
        if len(sequence.options.suffixes) < 2:
            super().settle(sequence, block)
        if sequence.options.suffixes:
            for hole in _holes(sequence, block):
                _close(sequence, block, hole)

    def take(self, sequence: Sequence, block: MaskedBlock) -> list[int]:
        return _written(sequence, block).token_ids[sequence.num_output_tokens :]

    def num_written(self, sequence: Sequence, block: MaskedBlock) -> int | None:
        """A rerun writes its canvas anew, and must not be penalized for what is yet to come."""
        return len(_written(sequence, block).token_ids)

    def ending(self, sequence: Sequence) -> Ending | None:
        if not sequence.options.suffixes:
            return None
        written = _written(sequence, self.block(sequence))
        if len(written.hole_lengths) < len(sequence.options.suffixes):
            return None
        reason = FinishReason.LENGTH if written.num_full else FinishReason.STOP
        return Ending(reason, tuple(written.hole_lengths))

    def canvas_end(self, sequence: Sequence) -> int:
        return self.block(sequence).end

    def cache(self, sequence: Sequence) -> CanvasCache:
        return CanvasCache.NONE  # the canvas changes everywhere

    def _longest(self, num_prompt_tokens: int) -> int | None:
        """How long a canvas may be that lies in one block of a block-causal model; None: any."""
        length = self.config.block_length
        if self.config.context is not ContextKind.BLOCK_CAUSAL or length is None:
            return None
        return length - num_prompt_tokens % length


def _refuse_in_holes(name: str, value: object) -> None:
    if value:
        message = f"{name} has no meaning where a text has several holes"
        raise InvalidRequestError(message, name)


def _sizes(sequence: Sequence) -> list[int]:
    """How many masks each hole has at first."""
    num_holes = max(1, len(sequence.options.suffixes))
    share, rest = divmod(sequence.max_output_tokens, num_holes)
    return [share + (hole < rest) for hole in range(num_holes)]


def _holes(sequence: Sequence, block: MaskedBlock) -> Iterable[range]:
    """The places of the canvas that are to be filled."""
    first = sequence.num_prompt_tokens - block.start
    suffixes = sequence.options.suffixes or ((),)
    for size, suffix in zip(_sizes(sequence), suffixes, strict=True):
        yield range(first, first + size)
        first += size + len(suffix)


def _close(sequence: Sequence, block: MaskedBlock, hole: range) -> None:
    """Fill a hole behind its end of text with just that: nothing more is to be said there."""
    for place in hole:
        token_id = block.token_ids[place]
        if token_id is None:
            return
        if sequence.is_end(token_id, 1 + place - hole.start):
            block.token_ids[place : hole.stop] = [token_id] * (hole.stop - place)
            return


def _written(sequence: Sequence, block: MaskedBlock) -> _Written:
    token_ids: list[int] = []
    lengths: list[int] = []
    num_full = 0
    fills_in = bool(sequence.options.suffixes)
    for hole in _holes(sequence, block):
        own = block.prefix(hole.start, hole.stop)
        is_whole, is_full = len(own) == len(hole), True
        for number, token_id in enumerate(own if fills_in else ()):
            if sequence.is_end(token_id, number + 1):
                own, is_full = own[:number], False
                break
        token_ids += own
        if not is_whole:
            break
        lengths.append(len(own))
        num_full += is_full
    return _Written(token_ids, lengths, num_full)
