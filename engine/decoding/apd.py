"""Adaptive parallel decoding: how much of what a diffusion model drew at once is kept.

Israel et al., "Accelerating diffusion LLMs via adaptive parallel decoding" (arXiv 2506.00413): the
diffusion model proposes x = argmax(log q / T + G), a small autoregressive model reads x, and
y = argmax((R log q + (1 - R) log p) / T + G) is drawn from the mixture with the same noise; the
longest prefix with x = y stands. The result is neither model's distribution: R trades quality for
speed. Without an autoregressive model a prefix stands while the diffusion model is sure of it.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from torch import Tensor

from engine.decoding.verification import count_accepted_prefix


@dataclass(frozen=True, slots=True)
class APDRule:
    """The rule and its one knob, by the paper's letter."""

    mix_weight: float = 0.5
    """R: 1 keeps all that the diffusion model drew, 0 what the autoregressive model confirms."""

    def __post_init__(self) -> None:
        """Raise `ValueError` where it is out of its range."""
        if not 0.0 <= self.mix_weight <= 1.0:
            raise ValueError(f"mix_weight must be in [0, 1], got {self.mix_weight}")

    def mixed_logits(self, diffusion_logits: Tensor, ar_logits: Tensor) -> Tensor:
        """Logits [N, V] of the mixture; sample y from them as x was sampled from the former.

        Row for row at the same position, ar_logits[j] having read x up to j - 1. Not normalised: a
        constant for a row moves no argmax and no filter.
        """
        if self.mix_weight == 0.0:  # 0 * -inf is not 0
            return ar_logits.float()
        if self.mix_weight == 1.0:
            return diffusion_logits.float()
        own = diffusion_logits.float() * self.mix_weight
        return own.add_(ar_logits.float(), alpha=1.0 - self.mix_weight)

    def count_accepted(self, draft: Seq[int], target: Seq[int]) -> int:
        """How much of a draft stands, at least one token: what was drawn first hangs on nothing.

        draft, target: x and y of one sequence. Commit draft[: accepted]; there is no correction
        and no bonus.
        """
        return max(1, count_accepted_prefix(draft, target))


def count_confident(
    confidences: Seq[float], threshold: float, max_parallel: int | None = None
) -> int:
    """Length of the prefix that is at least so sure: one token or more, `max_parallel` or fewer.

    confidences: of a draft's own tokens, left to right, in [0, 1]. An empty draft gives 0.
    """
    limit = len(confidences) if max_parallel is None else min(len(confidences), max_parallel)
    for index in range(1, limit):
        if confidences[index] < threshold:
            return index
    return limit


@dataclass(frozen=True, slots=True)
class AdaptiveThreshold:
    """A confidence threshold that keeps the quality of what it lets through at a target.

    The quality of a step is a share in [0, 1]: how many of its tokens another model agreed with,
    or their mean confidence. Below the target the threshold rises, above it falls, by at most
    `rate` a step, and it never leaves [low, high].
    """

    value: float
    target: float = 0.9
    low: float = 0.3
    high: float = 0.99
    rate: float = 0.05

    def __post_init__(self) -> None:
        """Raise `ValueError` where the numbers leave no threshold to choose."""
        if not 0.0 <= self.low <= self.value <= self.high <= 1.0:
            message = f"needs 0 <= low <= value <= high <= 1, got {self.low}, {self.value}, "
            raise ValueError(message + f"{self.high}")
        if not (0.0 <= self.target <= 1.0 and 0.0 < self.rate <= 1.0):
            raise ValueError(f"no shares: target {self.target}, rate {self.rate}")

    def update(self, quality: float) -> AdaptiveThreshold:
        """The threshold for the next step; `quality` of this one in [0, 1]."""
        assert 0.0 <= quality <= 1.0, "quality is a share"
        moved = self.value + self.rate * (self.target - quality)
        return replace(self, value=min(max(moved, self.low), self.high))
