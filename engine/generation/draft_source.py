"""Where a draft's block comes from: a drafter of the DFlash kind, or a diffusion model alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from typing import ClassVar

from engine.draft_planner import CostCurve
from engine.generation.diffusion_reader import Block, DiffusionReader
from engine.generation.strategy import ModelRole, Rows, StepTiming, StrategyContext
from engine.models.diffusion_lm import ContextKind, DiffusionConfig
from engine.request.sequence import Sequence
from engine.step_costs import DraftCosts


class DraftSource(ABC):
    """Makes the rows of one drafting forward, and knows what such a forward costs."""

    cost: DraftCosts
    """Seconds by blocks."""
    reads_texts: ClassVar[bool] = False
    """Whether there may be something to read for a sequence that is not drafted for."""

    @property
    @abstractmethod
    def max_length(self) -> int:
        """The most tokens that one block can draft."""

    @abstractmethod
    def rows(self, sequence: Sequence, length: int, revealed: Seq[int | None] = ()) -> Rows:
        """A block of `length` masks after the sequence; `revealed` tokens take their places."""

    @abstractmethod
    def observe(self, timing: StepTiming) -> None:
        """Learn what forwards cost."""

    def reading_rows(self, sequence: Sequence) -> Rows | None:
        """Rows that must be read before a block can be drafted; None where nothing is missing."""
        return None

    def num_unread(self, sequence: Sequence) -> int:
        """Tokens that a block's forward would have to read first."""
        return 0

    def forget(self, sequence: Sequence) -> None:  # noqa: B027 an optional hook
        """Drop what was kept for an ended sequence."""


class DFlashSource(DraftSource):
    """Blocks of one trained size over the verifier's hidden states."""

    def __init__(self, context: StrategyContext) -> None:
        assert context.mask_token_id is not None
        self.cost = DraftCosts(CostCurve(context.draft_costs))
        self._mask_token_id = context.mask_token_id
        self._num_masks = context.block_size - 1
        self._max_length = min(context.max_draft_length, self._num_masks)

    @property
    def max_length(self) -> int:
        return self._max_length

    def rows(self, sequence: Sequence, length: int, revealed: Seq[int | None] = ()) -> Rows:
        block = _filled(self._mask_token_id, self._num_masks, revealed)
        anchor = sequence.num_tokens - 1
        token_ids = [sequence.token_ids[-1], *block]
        return Rows(sequence, ModelRole.DRAFTER, token_ids, anchor, length)

    def observe(self, timing: StepTiming) -> None:
        for forward in timing.drafts:
            self.cost.update(*forward)


class DiffusionSource(DraftSource):
    """Blocks of any size by a model that reads the text itself (DEER, arXiv 2512.15176)."""

    reads_texts: ClassVar[bool] = True

    def __init__(self, context: StrategyContext, config: DiffusionConfig) -> None:
        self._reader = DiffusionReader(config)
        self._config = config
        limit = config.block_length if config.context is ContextKind.BLOCK_CAUSAL else None
        self._max_length = min(context.max_draft_length, limit or context.max_draft_length)
        self._width = 1 + self._max_length
        points = [(rows / self._width, seconds) for rows, seconds in context.denoise_costs]
        self.cost = DraftCosts(CostCurve(points))

    @property
    def max_length(self) -> int:
        return self._max_length

    def rows(self, sequence: Sequence, length: int, revealed: Seq[int | None] = ()) -> Rows:
        tokens = _filled(self._config.mask_token_id, length, revealed)
        return self._reader.block_rows(sequence, Block(tokens, length))

    def reading_rows(self, sequence: Sequence) -> Rows | None:
        if not self._reader.is_behind(sequence):
            return None
        return self._reader.reading_rows(sequence, is_final=False)

    def num_unread(self, sequence: Sequence) -> int:
        return self._reader.num_unread(sequence)

    def observe(self, timing: StepTiming) -> None:
        for size, seconds in timing.denoises:
            self.cost.update(size / self._width, seconds)

    def forget(self, sequence: Sequence) -> None:
        self._reader.forget(sequence)


def draft_source(context: StrategyContext, prefer: ModelRole = ModelRole.DRAFTER) -> DraftSource:
    """The source that these models allow, the preferred one where there are both."""
    diffusion = context.diffusion
    has_drafter = context.block_size > 0
    if diffusion is not None and (prefer is ModelRole.DIFFUSION or not has_drafter):
        return DiffusionSource(context, diffusion)
    return DFlashSource(context)


def _filled(mask_token_id: int, length: int, revealed: Seq[int | None]) -> list[int]:
    if not revealed:
        return [mask_token_id] * length
    known = [*revealed, *[None] * (length - len(revealed))]
    return [mask_token_id if token_id is None else token_id for token_id in known]
