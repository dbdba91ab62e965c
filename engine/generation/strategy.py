"""All that the author of a generation strategy must read: two methods make a way of generating.

A step runs rounds. In each round every strategy proposes rows for the sequences that have no final
rows yet; the engine packs the rows of all strategies into one forward a model. What a round's
drafting rows gave comes back to `propose` in the next. Verifier rows are always final: they wait
until nobody drafts any more, and then share one forward. The outputs of all final rows go to
`accept`, which says what each sequence commits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, NamedTuple

from torch import Tensor

from engine.entropy_controller import EntropyConfig
from engine.models.canvas_lm import CanvasConfig
from engine.models.diffusion_lm import DiffusionConfig
from engine.models.token_sampler import TokenSampler
from engine.request.options import NO_OPTIONS, GenerationOptions
from engine.request.outputs import Ending
from engine.request.sampling_params import SamplingParams
from engine.request.sequence import Sequence


class ModelRole(Enum):
    VERIFIER = "verifier"
    DRAFTER = "drafter"  # of the DFlash kind: reads the verifier's hidden states
    DIFFUSION = "diffusion"  # stands alone, and fills in masks
    CANVAS = "canvas"  # has no mask, and denoises random tokens; its rows are diffusion rows


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of the rows, side by side, that see the same: causal, or all below `visible_end`."""

    num_rows: int
    visible_end: int | None = None


class Rows(NamedTuple):
    """Rows of one model for one sequence, at positions start, start + 1, ...

    Verifier rows are causal, and `num_logits` counts from the end: row p predicts position p + 1.
    Drafter rows are one block, an anchor and its masks; `num_logits` counts masks from the front,
    and each predicts its own position. Diffusion rows are cut into `pieces` (none: all causal); the
    `num_logits` tokens before the last `num_tail` are asked for, each at its own position, whatever
    shift the model has.
    """

    sequence: Sequence
    model: ModelRole
    token_ids: Seq[int]
    start: int
    num_logits: int
    pieces: Seq[Piece] = ()
    is_final: bool = True
    """Whether this ends the step for the sequence; drafter rows never do."""
    denoising_step: int = 0
    """Keys the noise of diffusion rows; 0 is the noise that verifier and drafter share."""
    num_tail: int = 0
    num_written: int | None = None
    """How many output tokens penalties know of; None: all. A rerun has been given more at first."""
    wants_logits: bool = False
    """Whether the output's logits must be those that a chained draft was drawn from."""
    wants_logprobs: bool = False
    """Whether the output must say what its tokens were drawn from."""
    temperature: float = 1.0
    """Of diffusion rows: divides their logits, before the request's own does."""
    feedback: Tensor | None = None
    """Of diffusion rows: what the last pass over the same ones gave, if the model is told that."""

    @property
    def is_drafting(self) -> bool:
        return self.model is ModelRole.DRAFTER or not self.is_final


class RowsOutput(NamedTuple):
    """What came of `rows`: a token for each row with logits, drawn with the request's own noise.

    token_ids: num_logits of them. logits: [num_logits, V], before any processing; those of a canvas
    model after it and after the rows' own temperature. logprobs: log p~, [num_logits, V], that the
    tokens were drawn from; only for rows that want it. feedback: [num_logits, H], what the next
    pass of a canvas model over the same rows is to be told.
    """

    rows: Rows
    token_ids: list[int]
    logits: Tensor
    logprobs: Tensor | None = None
    feedback: Tensor | None = None


class Forward(NamedTuple):
    """One forward of one model: how large it was, and how long it took (with its sampling)."""

    size: int
    seconds: float


class StepTiming(NamedTuple):
    """What one step cost, for strategies that plan by measured costs."""

    drafts: Seq[Forward]
    """Of the drafter; sizes are blocks."""
    denoises: Seq[Forward]
    """Of the diffusion model; sizes are rows."""
    num_sequences: int
    """Those that decode, of all strategies together."""
    num_rows: int
    """Theirs, of the verifier."""
    num_prefill_rows: int
    seconds: float
    """From the step's beginning to that of the next: all that a step costs is in it."""


@dataclass(frozen=True, slots=True)
class StrategyContext:
    """What a strategy may know of the engine that it runs in."""

    block_size: int  # anchor and masks of one drafter block; 0 without a drafter
    mask_token_id: int | None  # the drafter's
    max_model_len: int
    max_draft_length: int
    verify_costs: Seq[tuple[int, float]]
    """Measured at start: (rows, seconds) of a verifier forward."""
    draft_costs: Seq[tuple[int, float]]
    """Measured at start: (blocks, seconds) of a drafter forward."""
    sampler: TokenSampler
    """Draws tokens, and gives the noise and the distributions behind them."""
    defaults: GenerationOptions = NO_OPTIONS
    """What a request that says nothing gets."""
    diffusion: DiffusionConfig | None = None
    batch_costs: Seq[tuple[int, int, float]] = ()
    """Measured at start: (sequences, rows, seconds) of a verifier forward of a whole batch."""
    denoise_costs: Seq[tuple[int, float]] = ()
    """Measured at start: (rows, seconds) of a forward of the diffusion model."""
    entropy: EntropyConfig | None = None
    """From which entropies on drafts are cut and paced; None: acceptance so far decides alone."""
    canvas: CanvasConfig | None = None
    """Of a diffusion model without masks, in the place of the other."""


class GenerationStrategy(ABC):
    """A way of generating, driving many sequences at once."""

    needs: ClassVar[frozenset[ModelRole]] = frozenset({ModelRole.VERIFIER})
    """The models without which this strategy cannot run."""

    honours: ClassVar[frozenset[str]] = frozenset()
    """Fields of `GenerationOptions` that mean something here; a request with another is refused."""

    is_lossless: ClassVar[bool] = True
    """Whether the output is that of the verifier alone; said in every response where it is not."""

    keeps_grammars: ClassVar[bool] = True
    """Whether a grammar can be kept to: whether every token is drawn in verifier rows."""

    reads_with_verifier: ClassVar[bool] = True
    """Whether the scheduler reads prompts, in chunks, with the verifier before the first step."""

    resumes_with_verifier: ClassVar[bool] = True
    """Whether the verifier may draw the next token of an output that it had to read again."""

    def __init__(self, context: StrategyContext) -> None:
        self.context = context

    @classmethod
    def make(cls, context: StrategyContext) -> GenerationStrategy:
        """The strategy for an engine's models, where those of another kind need another one."""
        return cls(context)

    @classmethod
    def can_run(cls, available: frozenset[ModelRole]) -> bool:
        return cls.needs <= available

    def is_lossless_with(self, options: GenerationOptions) -> bool:
        """Whether a sequence with these options (defaults filled in) is `is_lossless`."""
        return self.is_lossless

    def reads_prompt(self, sequence: Sequence) -> bool:
        """`reads_with_verifier` of one sequence: it may hang on what the request has chosen."""
        return self.reads_with_verifier

    @property
    def shares_pages(self) -> bool:
        """Whether every page's content is a function of the prefix, so that others may use it."""
        return self.reads_with_verifier

    def check(  # noqa: B027 an optional hook
        self, num_prompt_tokens: int, params: SamplingParams, options: GenerationOptions
    ) -> None:
        """Raise `InvalidRequestError` for what this strategy cannot honour."""

    def default_max_tokens(self, num_prompt_tokens: int, options: GenerationOptions) -> int | None:
        """What a request without max_tokens gets; None: until the context is full."""
        return None

    def max_rows(self, sequence: Sequence) -> int:
        """The most rows that this sequence may be given in its next step."""
        return 1

    def max_positions(self, sequence: Sequence) -> int:
        """How many leading positions must have pages before the sequence's next step."""
        return sequence.num_tokens - 1 + min(self.max_rows(sequence), sequence.num_remaining)

    @abstractmethod
    def propose(self, sequences: Seq[Sequence], drafted: Seq[RowsOutput]) -> list[Rows]:
        """The rows that these sequences want in this round.

        `drafted` is empty in a step's first round, and later holds what the drafting rows of the
        round before gave. A sequence without rows in this round is asked about again in the next;
        where no rows are drafting, every sequence must get final ones. Changes no sequence.
        """

    @abstractmethod
    def accept(self, outputs: Seq[RowsOutput]) -> list[list[int]]:
        """What each sequence may now commit: zero or more tokens, in the order of `outputs`.

        The j-th token must stem from the j-th row with logits. May update statistics.
        """

    def ending(self, sequence: Sequence) -> Ending | None:
        """Whether a sequence ends with what was just accepted, beside what its tokens say."""
        return None

    def observe(self, timing: StepTiming) -> None:  # noqa: B027 an optional hook
        """Learn from what a step in which this strategy took part has cost.

        Called when the next step begins; left out where the engine may have been idle in between.
        """

    def release(self, sequence: Sequence) -> None:  # noqa: B027 an optional hook
        """Forget what was kept for a sequence that has ended."""
