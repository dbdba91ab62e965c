"""Which tokens of a canvas of random tokens stand after a pass, and when the canvas is done.

The sampler of DiffusionGemma, as transformers 5.23 has it (models/diffusion_gemma): tokens are
accepted by a bound on their joint mutual information (Ben-Hamu et al., arXiv 2505.24857), the
others become noise again; the canvas is done when the model is sure of it and no longer changes it.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_STEPS = 1 << 12
"""More passes than anybody needs, and far fewer than there are keys for their noise."""


@dataclass(frozen=True, slots=True)
class EntropyBound:
    """The numbers of the rule; the defaults are those of transformers, entropies are in nats."""

    num_steps: int = 48  # passes at most
    t_min: float = 0.4
    t_max: float = 0.8
    entropy_bound: float = 0.1
    stability_threshold: int = 1  # passes before the last one that must have guessed the same
    confidence_threshold: float = 0.005  # mean entropy below which a canvas may be done

    def temperature(self, num_done: int) -> float:
        """Of the pass after `num_done`: from t_max down to just above t_min, in equal steps."""
        share = (self.num_steps - num_done) / self.num_steps
        return self.t_min + (self.t_max - self.t_min) * share

    def accepted(self, entropies: Tensor) -> Tensor:
        """Which tokens of one canvas stand: [N] -> [N] bool, the surest one always.

        The k lowest entropies whose sum without the highest of them is at most `entropy_bound`;
        of equal ones the leftmost come first.
        """
        ranked, order = entropies.sort(stable=True)
        stands = ranked.cumsum(0) - ranked <= self.entropy_bound
        return torch.empty_like(stands).scatter_(0, order, stands)

    def is_done(self, mean_entropy: float, guess: Seq[int], earlier: Seq[Seq[int]]) -> bool:
        """Whether the most probable tokens have stood still, and the model is sure of them.

        `earlier` are the guesses of the passes before, the latest one last.
        """
        recent = earlier[len(earlier) - self.stability_threshold :]
        is_stable = len(earlier) >= self.stability_threshold and all(g == guess for g in recent)
        return is_stable and mean_entropy < self.confidence_threshold
