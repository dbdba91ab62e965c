"""All that the author of a generation strategy must read: two methods make a way of generating.

A step runs rounds. In each round every strategy proposes rows for the sequences that it drives;
the engine packs the rows of all strategies into one forward a model. Drafter rows come back to
`propose` in the next round, verifier rows end the step and go to `accept`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from torch import Tensor

from engine.request.sequence import Sequence


class ModelRole(Enum):
    VERIFIER = "verifier"
    DRAFTER = "drafter"


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one model for one sequence, at positions start, start + 1, ...

    Verifier rows are causal, and `num_logits` counts from the end: row p predicts position p + 1.
    Drafter rows are one block, an anchor and its masks; `num_logits` counts masks from the front,
    and each predicts its own position.
    """

    sequence: Sequence
    model: ModelRole
    token_ids: Seq[int]
    start: int
    num_logits: int


@dataclass(frozen=True, slots=True)
class RowsOutput:
    """What came of `rows`: a token for each row with logits, drawn with the request's own noise.

    token_ids: num_logits of them. logits: [num_logits, V], before any processing.
    """

    rows: Rows
    token_ids: list[int]
    logits: Tensor


@dataclass(frozen=True, slots=True)
class StepTiming:
    """What one step cost, for strategies that plan by measured costs."""

    draft_s: float
    num_blocks: int
    verify_s: float
    num_rows: int
    num_prefill_rows: int


@dataclass(frozen=True, slots=True)
class StrategyContext:
    """What a strategy may know of the engine that it runs in."""

    block_size: int  # anchor and masks of one drafter block; 0 without a drafter
    mask_token_id: int | None
    max_model_len: int
    max_draft_length: int
    verify_costs: Seq[tuple[int, float]]
    """Measured at start: (rows, seconds) of a verifier forward."""
    draft_costs: Seq[tuple[int, float]]
    """Measured at start: (blocks, seconds) of a drafter forward."""


class GenerationStrategy(ABC):
    """A way of generating, driving many sequences at once."""

    needs: ClassVar[frozenset[ModelRole]] = frozenset({ModelRole.VERIFIER})
    """The models without which this strategy cannot run."""

    def __init__(self, context: StrategyContext) -> None:
        self.context = context

    @property
    def max_rows(self) -> int:
        """The most verifier rows that one sequence may be given in a step."""
        return 1

    @abstractmethod
    def propose(self, sequences: Seq[Sequence], drafted: Seq[RowsOutput]) -> list[Rows]:
        """The rows that these sequences want in this round.

        `drafted` is empty in a step's first round, and later holds what the drafter rows of the
        round before gave. Return drafter rows, or else verifier rows for every sequence.
        Changes no sequence.
        """

    @abstractmethod
    def accept(self, outputs: Seq[RowsOutput]) -> list[list[int]]:
        """What each sequence may now commit: zero or more tokens, in the order of `outputs`.

        The j-th token must stem from the j-th row with logits. May update statistics.
        """

    def observe(self, timing: StepTiming) -> None:  # noqa: B027 an optional hook
        """Learn from what the step cost; called once a step in which this strategy took part."""

    def release(self, sequence: Sequence) -> None:  # noqa: B027 an optional hook
        """Forget what was kept for a sequence that has ended."""
