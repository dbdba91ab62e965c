"""Entropy-adaptive control without a model: its rules, and the online fit on simulated streams."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.acceptance_model import AcceptanceModel
from engine.base import BaseController
from engine.entropy_controller import (
    Array,
    Certainty,
    DraftOutcome,
    EntropyAdaptiveController,
    EntropyAwareDraftController,
    EntropyConfig,
    EntropyStats,
    certainty,
)

LENGTH = 7


class Stream(NamedTuple):
    """What was foretold about each position whose fate became known, and that fate."""

    fitted: Array
    by_position: Array
    stood: Array


def simulate(controller: EntropyAwareDraftController, truth: Array, seed: int, num: int) -> Stream:
    """Acceptance follows `truth`: slope of entropy, slope of lead, fall a position."""
    chooser = np.random.default_rng(seed)
    acceptance = AcceptanceModel(LENGTH)
    fitted: list[float] = []
    by_position: list[float] = []
    stood: list[bool] = []
    for number in range(num):
        entropy = chooser.gamma(1.0, 1.5, LENGTH)
        lead = chooser.gamma(2.0, 1.5, LENGTH)
        log_odds = 1.5 - truth[0] * entropy + truth[1] * lead - truth[2] * np.arange(LENGTH)
        is_right = chooser.random(LENGTH) < 1 / (1 + np.exp(-log_odds))
        num_accepted = int(is_right.cumprod().sum())
        prior = acceptance.chances(str(number % 4), LENGTH)
        features = controller.features(Certainty(1.0 - entropy, entropy, lead), prior)
        known = min(num_accepted + 1, LENGTH)
        fitted += controller.recommend()(features)[:known].tolist()
        by_position += prior[:known]
        stood += [j < num_accepted for j in range(known)]
        controller.update([DraftOutcome(features, LENGTH, num_accepted)])
        acceptance.update(str(number % 4), LENGTH, num_accepted)
    return Stream(np.array(fitted), np.array(by_position), np.array(stood, dtype=np.float64))


def log_loss(chances: Array, stood: Array) -> float:
    right = np.where(stood > 0.5, chances, 1 - chances)
    return float(-np.log(right.clip(1e-9)).mean())


def check_calibrated(chances: Array, stood: Array) -> None:
    """Of the positions given about the same chance, about that share stands."""
    for low in (0.0, 0.25, 0.5, 0.75):
        chosen = (chances >= low) & (chances < low + 0.25)
        if chosen.sum() > 150:
            assert abs(chances[chosen].mean() - stood[chosen].mean()) < 0.08, f"from {low}"


EASY, DRIFTED = np.array([0.8, 0.4, 0.1]), np.array([-0.2, 1.0, 0.5])


def test_the_fit_beats_what_the_position_alone_tells_and_is_calibrated() -> None:
    controller = EntropyAwareDraftController(EntropyConfig())
    stream = simulate(controller, EASY, seed=0, num=900)
    late = len(stream.stood) // 5
    fitted, by_position, stood = (numbers[late:] for numbers in stream)
    assert log_loss(fitted, stood) < 0.9 * log_loss(by_position, stood)
    check_calibrated(fitted, stood)
    stats = controller.stats
    assert stats.mean_chance == pytest.approx(stats.acceptance_rate, abs=0.03)
    assert stats.log_loss == pytest.approx(log_loss(stream.fitted, stream.stood), abs=0.02)
    assert stats.mean_entropy == pytest.approx(1.2, abs=0.4)


def test_a_drift_is_followed_and_the_fit_is_calibrated_again() -> None:
    controller = EntropyAwareDraftController(EntropyConfig(memory=500))
    simulate(controller, EASY, seed=1, num=700)
    stream = simulate(controller, DRIFTED, seed=2, num=1200)
    late = len(stream.stood) // 3
    fitted, by_position, stood = (numbers[late:] for numbers in stream)
    assert log_loss(fitted, stood) < 0.95 * log_loss(by_position, stood)
    check_calibrated(fitted, stood)


def test_before_any_evidence_the_thresholds_correct_what_acceptance_says() -> None:
    config = EntropyConfig(low=1.0, high=3.0)
    model = EntropyAwareDraftController(config).recommend()
    entropy = np.array([1.0, 2.0, 3.0])
    features = EntropyAwareDraftController(config).features(
        Certainty(np.zeros(3), entropy, np.ones(3)), [0.6] * 3
    )
    chances = model(features)
    assert chances[1] == pytest.approx(0.6)
    odds = chances / (1 - chances)
    assert odds[0] / odds[1] == pytest.approx(math.e)
    assert odds[2] / odds[1] == pytest.approx(1 / math.e)


@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(0, 12), st.floats(0, 90)), min_size=1))
def test_whatever_is_seen_chances_stay_within_zero_and_one(
    rows: list[tuple[float, float, float]],
) -> None:
    """Also under a stream that can be told apart perfectly, for which the best fit is infinite."""
    controller = EntropyAwareDraftController(EntropyConfig(memory=50))
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    features = controller.features(Certainty(*columns), [0.98] * len(rows))
    for number in range(30):
        num_accepted = len(rows) if number % 2 else 0
        controller.update([DraftOutcome(features, len(rows), num_accepted)] * 40)
    chances = controller.recommend()(features)
    assert ((chances > 0) & (chances < 1)).all()


def test_what_is_recommended_does_not_change_with_later_evidence() -> None:
    controller = EntropyAwareDraftController(EntropyConfig())
    features = controller.features(Certainty(*np.ones((3, 4))), [0.5] * 4)
    model = controller.recommend()
    before = model(features).tolist()
    controller.update([DraftOutcome(features, 4, 0)] * 100)
    assert model(features).tolist() == before
    assert controller.recommend()(features)[0] < before[0]


def test_positions_after_the_first_refused_teach_nothing() -> None:
    controller = EntropyAwareDraftController(EntropyConfig())
    features = controller.features(Certainty(*np.ones((3, 6))), [0.5] * 6)
    controller.update([DraftOutcome(features, 4, 1), DraftOutcome(features, 0, 0)] * 16)
    assert (controller.stats.num_positions, controller.stats.num_accepted) == (32, 16)


def test_certainty_of_logits_one_number_a_row() -> None:
    probs = torch.tensor([[0.7, 0.2, 0.1, 0.0], [0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])
    seen = certainty(probs.log(), torch.tensor([1.0, 0.0, 2.0]))
    assert seen.log_odds[:2] == pytest.approx([math.log(0.7 / 0.3), math.log(1 / 3)], abs=1e-5)
    assert np.isfinite(seen.log_odds).all()
    assert seen.entropy == pytest.approx([0.8018, math.log(4), 0.0], abs=1e-4)
    assert seen.lead == pytest.approx([1.0, 0.0, 2.0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"low": -0.1}, "low must be in"),
        ({"low": float("nan")}, "low must be in"),
        ({"low": 3.0}, "high must be above low, 3.0 nats, got 2.5"),
        ({"high": float("inf")}, "high must be above low"),
        ({"memory": 0}, "memory must be at least 1, got 0"),
        ({"hgih": 3.0}, "EntropyConfig has no field 'hgih'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_by_name(
    values: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        EntropyConfig.from_dict(values)


def test_low_entropy_gives_long_drafts_and_few_steps_and_high_entropy_the_reverse() -> None:
    config = EntropyConfig(low=0.5, high=2.5)
    advice = []
    for entropy in (0.2, 1.5, 6.0):
        controller = EntropyAdaptiveController(config, 8, max_denoising_steps=5)
        for _ in range(60):
            controller.update([entropy] * 8)
        advice.append(controller.recommend())
    assert [a.draft_length for a in advice] == [8, 8, 0]
    assert [a.denoising_steps for a in advice] == [1, 3, 5]
    assert [a.should_draft for a in advice] == [True, True, False]


def test_a_draft_ends_before_the_first_position_that_is_usually_uncertain() -> None:
    controller = EntropyAdaptiveController(EntropyConfig(), 6)
    for _ in range(60):
        controller.update([0.1, 0.4, 1.0, 3.5, 0.2, 0.2])
    assert controller.recommend().draft_length == 3
    assert controller.recommend().denoising_steps == 1


def test_where_nothing_is_drafted_any_more_it_is_tried_again_in_time() -> None:
    controller = EntropyAdaptiveController(EntropyConfig(), 4)
    for _ in range(60):
        controller.update([9.0] * 4)
    num_rests = 0
    while not controller.recommend().should_draft:
        controller.update(())
        num_rests += 1
        assert num_rests < 100, "never again"
    assert num_rests > 5, "at once again would be no fallback"


def test_both_controllers_have_the_two_verbs() -> None:
    for controller in (
        EntropyAdaptiveController(EntropyConfig(), 4),
        EntropyAwareDraftController(EntropyConfig()),
    ):
        assert isinstance(controller, BaseController)


def test_ratios_of_nothing_are_zero() -> None:
    stats = EntropyStats()
    assert (stats.acceptance_rate, stats.mean_chance, stats.log_loss, stats.mean_entropy) == (
        0,
    ) * 4
    assert replace(stats, num_positions=4, num_accepted=3).acceptance_rate == 0.75
