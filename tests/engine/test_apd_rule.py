"""Adaptive parallel decoding: the mixture, what stands of a draft, and the adaptive threshold."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.decoding.apd import AdaptiveThreshold, APDRule, count_confident
from engine.decoding.sampler import sample
from engine.decoding.sampling_table import SamplingTable
from engine.request.sampling_params import SamplingParams

V = 8
NUM_ROWS = 400


def two_models() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    diffusion = torch.randn(NUM_ROWS, V, generator=generator) * 1.5
    return diffusion, diffusion + torch.randn(NUM_ROWS, V, generator=generator)


def drawn(logits: Tensor, temperature: float) -> Tensor:
    """Row j with the noise of position j, whatever the logits."""
    table = SamplingTable.build([(SamplingParams(seed=4, temperature=temperature), 0, 0)])
    positions = torch.arange(len(logits))
    return sample(logits, table, positions * 0, positions)


def agreement(mix_weight: float, temperature: float) -> float:
    """Share of rows in which x and y are equal."""
    diffusion, ar = two_models()
    mixed = APDRule(mix_weight).mixed_logits(diffusion, ar)
    same = drawn(diffusion, temperature) == drawn(mixed, temperature)
    return same.double().mean().item()


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.3])
def test_more_of_a_draft_stands_the_more_the_drafter_weighs(temperature: float) -> None:
    shares = [agreement(weight, temperature) for weight in (0.0, 0.3, 0.6, 1.0)]
    assert shares == sorted(shares)
    assert shares[0] < shares[1] < shares[-1] == 1.0


def test_without_the_drafters_weight_y_is_what_the_other_model_writes() -> None:
    """Coupled speculation: then APD differs from it only in what follows a refusal."""
    diffusion, ar = two_models()
    mixed = APDRule(0.0).mixed_logits(diffusion, ar)
    assert torch.equal(drawn(mixed, 1.0), drawn(ar, 1.0))


def test_greedy_is_the_argmax_of_the_mixture() -> None:
    diffusion = torch.tensor([[0.6, 0.3, 0.1]]).log()
    ar = torch.tensor([[0.05, 0.75, 0.2]]).log()
    picks = [
        int(drawn(APDRule(weight).mixed_logits(diffusion, ar), 0.0)) for weight in (0.0, 0.5, 0.9)
    ]
    assert picks == [1, 1, 0]  # 0.6^0.5 * 0.05^0.5 < 0.3^0.5 * 0.75^0.5; and at 0.9 the reverse


def test_the_mixture_is_the_weighted_geometric_mean() -> None:
    diffusion, ar = two_models()
    mixed = APDRule(0.3).mixed_logits(diffusion, ar).log_softmax(-1)
    product = diffusion.softmax(-1) ** 0.3 * ar.softmax(-1) ** 0.7
    expected = product / product.sum(-1, keepdim=True)
    assert torch.allclose(mixed.exp(), expected, atol=1e-5)


@pytest.mark.parametrize("mix_weight", [0.0, 0.4, 1.0])
def test_a_token_that_a_model_excludes_makes_no_nan(mix_weight: float) -> None:
    diffusion = torch.tensor([[-math.inf, 0.0, 1.0]])
    ar = torch.tensor([[2.0, 0.5, -math.inf]])
    mixed = APDRule(mix_weight).mixed_logits(diffusion, ar)
    assert not mixed.isnan().any()
    excluded = (mixed == -math.inf).tolist()[0]
    assert excluded == [mix_weight > 0.0, False, mix_weight < 1.0]


def test_the_first_token_stands_and_each_draft_counts_for_itself() -> None:
    drafts = ([1, 2, 3], [4, 5, 6], [7])
    counts = APDRule().count_accepted
    assert [*map(counts, drafts, ([9, 2, 3], [4, 9, 6], [9]))] == [1, 1, 1]
    assert [*map(counts, drafts, ([1, 2, 3], [4, 5, 6], [9]))] == [3, 3, 1]


@pytest.mark.parametrize("value", [1.1, math.nan])
def test_a_knob_out_of_its_range_is_named(value: float) -> None:
    with pytest.raises(ValueError, match="mix_weight"):
        APDRule(value)


@pytest.mark.parametrize(
    ("confidences", "max_parallel", "expected"),
    [
        ([0.9, 0.8, 0.3, 0.9], None, 2),  # nothing behind a doubtful token
        ([0.1, 0.9, 0.9], None, 3),  # the first stands in any case
        ([0.1, 0.1], None, 1),
        ([0.9, 0.5, 0.9], None, 3),  # at the threshold is sure enough
        ([0.9, 0.9, 0.9], 2, 2),
        ([0.9, 0.9, 0.9], 1, 1),
        ([], None, 0),
    ],
)
def test_a_prefix_stands_while_the_drafter_is_sure(
    confidences: list[float], max_parallel: int | None, expected: int
) -> None:
    assert count_confident(confidences, 0.5, max_parallel) == expected


def test_the_threshold_rises_after_bad_steps_and_falls_after_good_ones() -> None:
    threshold = AdaptiveThreshold(0.8, target=0.9)
    assert threshold.update(0.5).value > 0.8 > threshold.update(1.0).value
    assert threshold.update(0.9).value == 0.8


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), max_size=200))
def test_the_threshold_never_leaves_its_bounds_nor_jumps(qualities: list[float]) -> None:
    threshold = AdaptiveThreshold(0.5, low=0.4, high=0.7, rate=0.3)
    for quality in qualities:
        moved = threshold.update(quality)
        assert 0.4 <= moved.value <= 0.7
        assert abs(moved.value - threshold.value) <= 0.3
        threshold = moved


def test_the_threshold_settles_where_what_it_lets_through_is_as_good_as_asked() -> None:
    """Tokens of confidence c are right with probability c, here evenly spread over [0, 1]."""
    threshold = AdaptiveThreshold(0.3, target=0.9, low=0.0, high=1.0)
    for _ in range(600):
        mean_quality_above = (threshold.value + 1.0) / 2
        threshold = threshold.update(mean_quality_above)
    assert threshold.value == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    "numbers", [{"value": 0.2}, {"value": 0.995}, {"value": 0.5, "rate": 0.0}, {"value": math.nan}]
)
def test_a_threshold_without_a_choice_is_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"needs 0 <= low|no shares"):
        AdaptiveThreshold(**numbers)
