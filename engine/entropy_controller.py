"""Entropy-adaptive control: how long to draft, how often to denoise, and when not to draft at all.

Both controllers only choose how much work to spend: under the shared-noise rule no choice made
here can change any output. Under the rule of p/q it could, so there neither may be asked.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.special import entr

from engine.base import BaseConfig, BaseController, BaseStats

Array = NDArray[np.float64]

_LARGEST_ENTROPY = 12.0  # nats; a flat distribution over 160,000 tokens
_LEAST_CHANCE = 1e-3
_FRESH = 0.1  # weight of the newest entropy in a mean
_READ_TOGETHER = 32  # draft positions; the fit is hardly older for it, and five times cheaper
_REST = 0.9  # what a step without a draft leaves of what was seen


@dataclass(frozen=True)
class EntropyConfig(BaseConfig):
    """Which entropies of a draft count as low and as high, in nats (natural logarithms)."""

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
    """What a draft's own logits say of it, one number a position each."""

    log_odds: Array  # of the likeliest token
    entropy: Array  # nats
    lead: Array  # of the drawn token's score over the next best, in logits


def certainty(logits: Tensor, lead: Tensor) -> Certainty:
    """logits: [R, V] as drawn from, all drafts of a round together; lead: [R].

    `lead` is measured where the token was drawn: noise included, so that it tells by how much the
    verifier may differ and still draw the same token. One softmax and one wait for the device.
    """
    probs = logits.float().softmax(-1)
    columns = torch.stack((probs.amax(-1), entr(probs).sum(-1), lead.float()))
    likeliest, entropy, leads = columns.double().cpu().numpy()
    likeliest = likeliest.clip(1e-6, 1.0 - 1e-6)
    return Certainty(np.log(likeliest / (1.0 - likeliest)), entropy, leads)


class DraftOutcome(NamedTuple):
    """A verified draft: what was known of it before, and how much of it stood."""

    features: Array  # [L, 6], of the verified positions or more
    num_verified: int
    num_accepted: int

    @property
    def num_known(self) -> int:
        """Positions whose fate is known: what comes after the first refused was never asked."""
        return min(self.num_accepted + 1, self.num_verified)


class SurvivalModel(NamedTuple):
    """Judges draft positions: the fit of one moment, which does not change any more."""

    weights: Array

    def __call__(self, features: Array) -> Array:
        """[L, 6] -> [L] probabilities of acceptance, given that all before were accepted."""
        return _sigmoid(features @ self.weights)


class EntropyAwareDraftController(BaseController[Seq[DraftOutcome], SurvivalModel]):
    """Draft length from acceptance, corrected by entropy.

    An online logistic fit: what acceptance so far says of a position (of the request and of the
    place in the draft) is one feature, what the logits of this very draft say are the others. It
    starts as that first feature, corrected by where the entropy lies between `low` and `high`.
    """

    def __init__(self, config: EntropyConfig) -> None:
        self.config = config
        self.stats = EntropyStats()
        self._weights = _FIRST_WEIGHTS
        self._curvature = _FIRST_CURVATURE
        self._unread: list[DraftOutcome] = []
        self._num_unread = 0

    def update(self, observation: Seq[DraftOutcome]) -> None:
        """Learn from the drafts of one step, a few steps together."""
        self._unread += [outcome for outcome in observation if outcome.num_known]
        self._num_unread += sum(outcome.num_known for outcome in observation)
        if self._num_unread >= _READ_TOGETHER:
            rows = np.concatenate([o.features[: o.num_known] for o in self._unread])
            fates = [j < o.num_accepted for o in self._unread for j in range(o.num_known)]
            self._unread, self._num_unread = [], 0
            self._fit(rows, np.array(fates, dtype=np.float64))

    def recommend(self) -> SurvivalModel:
        return SurvivalModel(self._weights)

    def features(self, certain: Certainty, chances: Seq[float]) -> Array:
        """[L, 6]; `chances` are by acceptance so far, given that all before were accepted."""
        return _features(self.config, certain, chances)

    def _fit(self, rows: Array, stood: Array) -> None:
        """One Newton step on a quadratic bound of the loss and on what is left of the older ones.

        The bound (Jaakkola and Jordan 2000) touches the loss at the weights that there are, so a
        step cannot overshoot. What fades makes room for the first weights, so that a direction
        without news is not forgotten into noise.
        """
        log_odds = rows @ self._weights
        chances = _sigmoid(log_odds)
        self._count(rows, stood, chances)
        kept = (1.0 - 1.0 / self.config.memory) ** len(rows)
        first = (1.0 - kept) * _FIRST_CURVATURE
        self._curvature = kept * self._curvature + first + (rows.T * _bound(log_odds)) @ rows
        slope = rows.T @ (stood - chances) - first @ (self._weights - _FIRST_WEIGHTS)
        self._weights = self._weights + np.linalg.solve(self._curvature, slope)

    def _count(self, rows: Array, stood: Array, chances: Array) -> None:
        stats = self.stats
        stats.num_positions += len(stood)
        stats.num_accepted += int(stood.sum())
        stats.sum_chances += float(chances.sum())
        right = np.where(stood > 0.5, chances, 1.0 - chances)
        stats.sum_log_loss -= float(np.log(right.clip(_LEAST_CHANCE)).sum())
        entropies = rows[:, _ENTROPY] * self.config.half_width + self.config.middle
        stats.sum_entropy += float(entropies.sum())


# Weights of: 1, log-odds by acceptance so far, log-odds of the likeliest token, entropy, lead and
# its logarithm. The last four are scaled so that they seldom leave [-2, 2].
_FIRST_WEIGHTS: Array = np.array([0.0, 1.0, 0.0, -1.0, 0.0, 0.0])
_ENTROPY = 3
_FIRST_CURVATURE: Array = np.eye(len(_FIRST_WEIGHTS))


def _features(config: EntropyConfig, certain: Certainty, chances: Seq[float]) -> Array:
    """[L, 6], bounded, so that one odd draft cannot throw the fit."""
    prior = np.array(chances, dtype=np.float64).clip(0.01, 0.99)
    features: Array = np.empty((len(prior), len(_FIRST_WEIGHTS)))
    features[:, 0] = 1.0
    features[:, 1] = np.log(prior / (1.0 - prior))
    features[:, 2] = certain.log_odds.clip(-4.0, 8.0) / 4.0
    features[:, _ENTROPY] = (certain.entropy - config.middle) / config.half_width
    lead = certain.lead.clip(1e-3, 12.0)
    features[:, 4] = lead / 4.0
    features[:, 5] = np.log(lead) / 2.0
    return features.clip(-5.0, 5.0)


def _bound(log_odds: Array) -> Array:
    """Curvature of the quadratic that bounds the logistic loss and touches it at `log_odds`."""
    size = np.abs(log_odds).clip(1e-3)
    return np.tanh(size / 2.0) / (2.0 * size)


def _sigmoid(log_odds: Array) -> Array:
    chances: Array = 1.0 / (1.0 + np.exp(-log_odds.clip(-30.0, 30.0)))
    return chances.clip(_LEAST_CHANCE, 1.0 - _LEAST_CHANCE)
