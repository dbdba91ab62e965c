"""Entropy-adaptive control: how long to draft, how often to denoise, and when not to draft at all.

Both controllers only choose how much work to spend: under the shared-noise rule no choice made
here can change any output. Under the rule of p/q it could, so there neither may be asked.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate, takewhile
from operator import mul
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.base import BaseConfig, BaseController, BaseStats, EntropyComputer

Array = NDArray[np.float64]

_entropy = EntropyComputer()
_LARGEST_ENTROPY = 12.0  # nats; a flat distribution over 160,000 tokens
_LEAST_CHANCE = 1e-3
_FRESH = 0.1  # weight of the newest entropy in a mean
_REST = 0.9  # what a step without a draft leaves of what was seen


@dataclass(frozen=True)
class EntropyConfig(BaseConfig):
    """Which entropies of a drafter count as low and as high, in nats (natural logarithms)."""

    low: float = 0.5
    """At and below it drafts are longest and one denoising step is enough."""
    high: float = 2.5
    """At and above it a position is not worth drafting; a learned fit only starts from it."""
    memory: int = 1000
    """Positions after which evidence counts 1 / e of what it did."""

    def validate(self) -> None:
        if not 0.0 <= self.low < _LARGEST_ENTROPY:
            raise ValueError(f"low must be in [0, {_LARGEST_ENTROPY:g}) nats, got {self.low}")
        if not self.low < self.high < float("inf"):
            raise ValueError(f"high must be above low, {self.low} nats, got {self.high}")
        if self.memory < 1:
            raise ValueError(f"memory must be at least 1, got {self.memory}")

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


@dataclass
class EntropyStats(BaseStats):
    """Sums over the draft positions whose fate is known; their ratios tell whether to trust."""

    num_positions: int = 0
    num_accepted: int = 0
    sum_chances: float = 0.0  # expected to be accepted, of the same positions
    sum_log_loss: float = 0.0  # nats
    sum_entropy: float = 0.0  # nats
    num_cut_tokens: int = 0  # drafted, but not shown to the verifier

    @property
    def acceptance_rate(self) -> float:
        return self._mean(self.num_accepted)

    @property
    def mean_chance(self) -> float:
        """Close to `acceptance_rate` where the fit is calibrated."""
        return self._mean(self.sum_chances)

    @property
    def log_loss(self) -> float:
        """Of the chances given before the fate was known, nats a position."""
        return self._mean(self.sum_log_loss)

    @property
    def mean_entropy(self) -> float:
        return self._mean(self.sum_entropy)

    def _mean(self, total: float) -> float:
        return total / self.num_positions if self.num_positions else 0.0


class EntropyAdvice(NamedTuple):
    """Knobs for the next draft or block."""

    denoising_steps: int
    draft_length: int  # 0: let the verifier write alone

    @property
    def should_draft(self) -> bool:
        return self.draft_length > 0


class EntropyAdaptiveController(BaseController[Seq[float], EntropyAdvice]):
    """Steps and draft length from entropy alone.

    For strategies that learn nothing about acceptance. A position is drafted while its mean
    entropy and that of all before it are below `high`; denoising steps grow from one at `low` to
    all of them at `high`.
    """

    def __init__(self, config: EntropyConfig, max_draft_length: int, max_denoising_steps: int = 1):
        self.config = config
        self._max_denoising_steps = max_denoising_steps
        self._means = [config.middle] * max_draft_length

    def update(self, observation: Seq[float]) -> None:
        """Entropies of one draft's leading positions, nats; none after a step without a draft.

        Without a draft nothing is seen, so what was seen fades, or nobody would ever draft again.
        """
        if not observation:
            middle = self.config.middle
            self._means = [middle + (mean - middle) * _REST for mean in self._means]
        for j, entropy in enumerate(observation[: len(self._means)]):
            self._means[j] += (entropy - self._means[j]) * _FRESH

    def recommend(self) -> EntropyAdvice:
        drafted = list(takewhile(lambda mean: mean < self.config.high, self._means))
        usual = sum(self._means) / len(self._means) if self._means else self.config.high
        share = (usual - self.config.low) / (self.config.high - self.config.low)
        extra = round(min(max(share, 0.0), 1.0) * (self._max_denoising_steps - 1))
        return EntropyAdvice(1 + extra, len(drafted))


class Certainty(NamedTuple):
    """What a drafter's logits say of its own draft, one number a position each."""

    log_odds: Array  # of the likeliest token
    entropy: Array  # nats
    lead: Array  # of the drawn token's score over the next best, in logits

    def part(self, start: int, end: int) -> Certainty:
        """Of the positions start, ..., end - 1."""
        return Certainty(*(numbers[start:end] for numbers in self))


def certainty(logits: Tensor, lead: Tensor) -> Certainty:
    """logits: [R, V] as drawn from, all drafts of a round together; lead: [R].

    `lead` is measured where the token was drawn: noise included, so that it tells by how much the
    verifier may differ and still draw the same token. One softmax and one wait for the device.
    """
    logprobs = logits.float().log_softmax(-1)
    likeliest = logprobs.amax(-1).clamp_max(-1e-6)
    log_odds = likeliest - (-likeliest.expm1()).log()
    rows = _stacked(log_odds, _entropy(logprobs), lead.float())
    return Certainty(*rows)


def _stacked(*columns: Tensor) -> Array:
    numbers: Array = torch.stack(columns).double().cpu().numpy()
    return numbers


class DraftOutcome(NamedTuple):
    """A verified draft: what was known of it before, and how much of it stood."""

    certainty: Certainty  # of the verified positions, or more
    chances: Seq[float]  # by acceptance so far, given that all before were accepted
    num_verified: int
    num_accepted: int


class SurvivalModel(NamedTuple):
    """Judges drafts: the fit of one moment, which does not change any more."""

    config: EntropyConfig
    weights: Array

    def chances(self, certain: Certainty, chances: Seq[float]) -> Array:
        """[L] probability that each position is accepted, given that all before it were."""
        return _sigmoid(_features(self.config, certain, chances) @ self.weights)

    def survivals(self, certain: Certainty, chances: Seq[float]) -> list[float]:
        """[L] probability that a position and all before it are accepted: falling, in (0, 1)."""
        return list(accumulate(self.chances(certain, chances).tolist(), mul))


class EntropyAwareDraftController(BaseController[Seq[DraftOutcome], SurvivalModel]):
    """Draft length from acceptance, corrected by entropy.

    An online logistic fit: what acceptance so far says of a position (of the request and of the
    place in the draft) is one feature, what the logits of this very draft say are the others. It
    starts as that first feature, corrected by where the entropy lies between `low` and `high`.
    """

    def __init__(self, config: EntropyConfig) -> None:
        self.config = config
        self.stats = EntropyStats()
        self._weights = _FIRST_WEIGHTS.copy()
        self._curvature = _FIRST_CURVATURE.copy()

    def update(self, observation: Seq[DraftOutcome]) -> None:
        """Learn from the drafts of one step: of each the accepted positions and the first refused.

        One Newton step on a quadratic bound of the loss, which cannot overshoot (Jaakkola and
        Jordan 2000), beside what is left of the older bounds. What fades makes room for the first
        weights, so that a direction without news is not forgotten into noise.
        """
        known = [_known(self.config, outcome) for outcome in observation if outcome.num_verified]
        if not known:
            return
        rows = np.concatenate([features for features, _ in known])
        stood = np.concatenate([fate for _, fate in known])
        log_odds = rows @ self._weights
        chances = _sigmoid(log_odds)
        self._count(observation, stood, chances)
        kept = (1.0 - 1.0 / self.config.memory) ** len(rows)
        first = (1.0 - kept) * _FIRST_CURVATURE
        self._curvature = kept * self._curvature + first + (rows.T * _bound(log_odds)) @ rows
        slope = rows.T @ (stood - chances) - first @ (self._weights - _FIRST_WEIGHTS)
        self._weights = self._weights + np.linalg.solve(self._curvature, slope)

    def recommend(self) -> SurvivalModel:
        return SurvivalModel(self.config, self._weights)

    def _count(self, observation: Seq[DraftOutcome], stood: Array, chances: Array) -> None:
        stats = self.stats
        stats.num_positions += len(stood)
        stats.num_accepted += int(stood.sum())
        stats.sum_chances += float(chances.sum())
        right = np.where(stood > 0.5, chances, 1.0 - chances)
        stats.sum_log_loss -= float(np.log(right.clip(_LEAST_CHANCE)).sum())
        for outcome in observation:
            stats.sum_entropy += float(outcome.certainty.entropy[: _num_known(outcome)].sum())


def denoising_pays(
    survivals: Seq[float],
    survivals_after: Seq[float],
    *,
    step_s: float,
    spent_s: float,
    verify_s: float,
) -> bool:
    """Whether to denoise a draft once more before it is verified.

    It pays where the predicted gain in accepted tokens is worth more than the step costs, a token
    being worth what it costs at the rate reached by verifying now: (1 + sum a) / (spent + verify).
    `step_s` is one more draft forward, `spent_s` those made for this draft, all in seconds.
    """
    gain = sum(survivals_after) - sum(survivals)
    rate = (1.0 + sum(survivals)) / (spent_s + verify_s)
    return gain > rate * step_s


# Weights of: 1, log-odds by acceptance so far, log-odds of the likeliest token, entropy, lead and
# its logarithm. The last four are scaled so that they seldom leave [-2, 2].
_FIRST_WEIGHTS: Array = np.array([0.0, 1.0, 0.0, -1.0, 0.0, 0.0])
_FIRST_CURVATURE: Array = np.eye(len(_FIRST_WEIGHTS))


def _features(config: EntropyConfig, certain: Certainty, chances: Seq[float]) -> Array:
    """[L, 6], bounded, so that one odd draft cannot throw the fit."""
    num_rows = len(certain.entropy)
    prior = np.clip(np.asarray(chances[:num_rows], dtype=np.float64), 0.01, 0.99)
    lead = certain.lead.clip(1e-3, 12.0)
    return np.stack(
        (
            np.ones(num_rows),
            np.log(prior / (1.0 - prior)),
            certain.log_odds.clip(-4.0, 8.0) / 4.0,
            ((certain.entropy - config.middle) / config.half_width).clip(-3.0, 3.0),
            lead / 4.0,
            np.log(lead) / 2.0,
        ),
        axis=1,
    )


def _known(config: EntropyConfig, outcome: DraftOutcome) -> tuple[Array, Array]:
    """Features of the positions whose fate is known, and whether each was accepted."""
    count = _num_known(outcome)
    features = _features(config, outcome.certainty.part(0, count), outcome.chances)
    return features, (np.arange(count) < outcome.num_accepted).astype(np.float64)


def _num_known(outcome: DraftOutcome) -> int:
    """What comes after the first refused position was never asked."""
    return min(outcome.num_accepted + 1, outcome.num_verified)


def _bound(log_odds: Array) -> Array:
    """Curvature of the quadratic that bounds the logistic loss and touches it at `log_odds`."""
    size = np.abs(log_odds).clip(1e-3)
    return np.tanh(size / 2.0) / (2.0 * size)


def _sigmoid(log_odds: Array) -> Array:
    chances: Array = 1.0 / (1.0 + np.exp(-log_odds.clip(-30.0, 30.0)))
    return chances.clip(_LEAST_CHANCE, 1.0 - _LEAST_CHANCE)
