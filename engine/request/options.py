"""How one sequence is to be generated, beside how it is sampled: the knobs of the strategies."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import StrEnum

from engine.request.errors import InvalidRequestError


class Acceptance(StrEnum):
    """Which rule decides how much of a draft stands."""

    COUPLED = "coupled"  # shared noise: the tokens of `ar`, for every seed
    REJECTION = "rejection"  # min(1, p / q) and the residual: the distribution of `ar`


class Remasking(StrEnum):
    """Which of a block's masks are revealed first."""

    LOW_CONFIDENCE = "low_confidence"  # the most probable tokens first, the others stay masked
    ENTROPY = "entropy"
    MARGIN = "margin"
    RANDOM = "random"


class CanvasCache(StrEnum):
    """What a bidirectional model does not compute again in the forwards of one block."""

    DUAL = "dual"  # everything but the block itself
    PREFIX = "prefix"  # what stands before the block
    NONE = "none"  # nothing: exact, and each forward reads the whole canvas


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """Knobs of the ways of generating; None leaves a choice to the strategy.

    A strategy reads those that concern it; `make_sequence` refuses those that its mode cannot
    honour.
    """

    draft_length: int | None = None  # None: the planner decides each step; 0: no draft
    denoising_steps: int | None = None  # forward passes a block (canvas) or a draft may take
    block_length: int | None = None  # tokens denoised together
    confidence_threshold: float | None = None  # masks at or above it are revealed at once
    unmasking_factor: float | None = None  # f: the n surest, as long as (n + 1)(1 - c_n) < f
    remasking: Remasking = Remasking.LOW_CONFIDENCE
    canvas_cache: CanvasCache | None = None  # None: dual
    acceptance: Acceptance = Acceptance.COUPLED
    skip_verify_confidence: float | None = None  # lossy: drafts this sure are not verified
    apd_mix_weight: float | None = None  # R: 1 keeps all that the diffusion model drew, 0 asks p
    apd_lookahead: int | None = None  # M: masks that are drawn at once
    apd_window: int | None = None  # W: so many of the last tokens are read anew in each step
    apd_max_parallel: int | None = None  # without the verifier: tokens that may stand at once
    apd_threshold: float | None = None  # without the verifier: while the model is this sure
    prediction: tuple[int, ...] = ()  # tokens that the client expects: a draft for free
    suffixes: tuple[tuple[int, ...], ...] = ()  # what follows each hole that is to be filled
    shows_steps: bool = False  # outputs carry traces; changes nothing that is generated

    def __post_init__(self) -> None:
        """Raise `InvalidRequestError` naming the first field that is out of its range."""
        _at_least("draft_length", self.draft_length, 0)
        _at_least("denoising_steps", self.denoising_steps, 1)
        _at_least("block_length", self.block_length, 1)
        _share("confidence_threshold", self.confidence_threshold)
        _share("skip_verify_confidence", self.skip_verify_confidence)
        _share("apd_mix_weight", self.apd_mix_weight)
        _share("apd_threshold", self.apd_threshold)
        for name in ("apd_lookahead", "apd_window", "apd_max_parallel"):
            _at_least(name, getattr(self, name), 1)
        if self.unmasking_factor is not None and not self.unmasking_factor > 0.0:
            message = f"unmasking_factor must be above 0, got {self.unmasking_factor}"
            raise InvalidRequestError(message, "unmasking_factor")

    @property
    def num_suffix_tokens(self) -> int:
        return sum(map(len, self.suffixes))

    def given(self) -> list[str]:
        """Names of the fields that say something."""
        return [f.name for f in fields(self) if getattr(self, f.name) != f.default]

    def with_defaults(self, defaults: GenerationOptions) -> GenerationOptions:
        """Fill what says nothing from `defaults`."""
        names = (name for name in defaults.given() if name not in self.given())
        return replace(self, **{name: getattr(defaults, name) for name in names})


def _at_least(name: str, value: int | None, low: int) -> None:
    if value is not None and value < low:
        raise InvalidRequestError(f"{name} must be at least {low}, got {value}", name)


def _share(name: str, value: float | None) -> None:
    if value is not None and not 0.0 <= value <= 1.0:  # NaN never passes
        raise InvalidRequestError(f"{name} must be in [0, 1], got {value}", name)


NO_OPTIONS = GenerationOptions()
"""Says nothing: the strategy decides."""
