"""Which masks are revealed: schedule, threshold and factor, and the orders that they go by."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.decoding.diffusion_sampler import DiffusionSampler, num_due
from engine.request.errors import InvalidRequestError
from engine.request.options import GenerationOptions, Remasking

V = 6


def rows(*probs: float) -> tuple[Tensor, Tensor]:
    """Logits whose drawn token 0 has these probabilities, the rest spread evenly; the tokens."""
    p = torch.tensor(probs)
    rest = ((1.0 - p) / (V - 1))[:, None].expand(-1, V - 1)
    return torch.cat([p[:, None], rest], 1).log(), torch.zeros(len(probs), dtype=torch.int64)


def revealed(sampler: DiffusionSampler, *probs: float, steps_done: int = 0) -> list[int]:
    """Places of the masks that one sequence reveals."""
    mask = sampler(*rows(*probs), [len(probs)], [steps_done] if sampler.num_steps else ())
    places: list[int] = mask.nonzero().squeeze(1).tolist()
    return places


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 200), st.integers(1, 250))
def test_the_schedule_is_lladas_with_the_remainder_first(num_masks: int, num_steps: int) -> None:
    share, remainder = divmod(num_masks, num_steps)
    published = [share + (step < remainder) for step in range(num_steps)]
    left = num_masks
    for step, expected in enumerate(published):
        if left == 0:
            assert expected == 0
            continue
        assert num_due(left, num_steps - step) == expected
        left -= expected
    assert left == 0


def test_a_schedule_that_is_over_reveals_all() -> None:
    assert num_due(7, 1) == num_due(7, 0) == num_due(7, -3) == 7


def test_the_schedule_reveals_the_surest_and_forgives_what_came_early() -> None:
    sampler = DiffusionSampler(num_steps=4)
    probs = (0.2, 0.9, 0.5, 0.8, 0.3, 0.6, 0.7)
    assert revealed(sampler, *probs) == [1, 3]  # 7 over 4: 2, 2, 2, 1
    assert revealed(sampler, *probs[:3], steps_done=1) == [1]  # 3 over the 3 steps left
    assert revealed(sampler, *probs, steps_done=3) == [*range(7)]


def test_without_a_rule_one_mask_a_step_is_revealed() -> None:
    assert revealed(DiffusionSampler(), 0.2, 0.9, 0.5) == [1]


def test_a_threshold_reveals_all_that_reach_it_and_always_one() -> None:
    sampler = DiffusionSampler(threshold=0.5)
    assert revealed(sampler, 0.6, 0.4, 0.51, 0.9) == [0, 2, 3]
    assert revealed(sampler, 0.3, 0.45, 0.2) == [1]
    exactly = torch.tensor([[0.0, -math.inf, -math.inf]] * 2)
    assert (
        DiffusionSampler(threshold=1.0)(exactly, torch.tensor([0, 0]), [2]).tolist() == [True] * 2
    )


def test_a_threshold_beside_a_number_of_steps_still_ends_in_time() -> None:
    sampler = DiffusionSampler(threshold=0.9, num_steps=2)
    assert revealed(sampler, 0.3, 0.5, 0.4, 0.2) == [1, 2]
    assert revealed(sampler, 0.95, 0.95, 0.95, 0.2) == [0, 1, 2]
    assert revealed(sampler, 0.3, 0.5, steps_done=1) == [0, 1]


def published_factor_rule(probs: list[float], factor: float) -> int:
    """The largest n with (n + 1)(1 - c_n) < f, by trying them all."""
    ranked = sorted(probs, reverse=True)
    fits = [n for n, c in enumerate(ranked, start=1) if (n + 1) * (1 - c) < factor]
    return max(fits, default=1)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(1, 98), min_size=1, max_size=9, unique=True), st.floats(0.0101, 3.0))
def test_the_factor_rule_reveals_as_many_as_it_may(percents: list[int], factor: float) -> None:
    probs = [percent / 100 for percent in percents]
    edges = [abs((n + 1) * (1 - c) - factor) for n, c in enumerate(sorted(probs)[::-1], start=1)]
    if min(edges) < 1e-4:
        return  # float32 may see either side
    places = revealed(DiffusionSampler(factor=factor), *probs)
    expected = published_factor_rule(probs, factor)
    assert len(places) == expected
    assert sorted(probs)[-expected:] == sorted(probs[place] for place in places)


def test_low_confidence_is_the_probability_of_what_was_drawn_not_of_the_best() -> None:
    logits, tokens = rows(0.9, 0.6)
    tokens[0] = 3  # the sure row drew something improbable
    sampler = DiffusionSampler()
    assert sampler.confidence(logits, tokens).tolist() == pytest.approx([0.02, 0.6], abs=1e-6)
    assert sampler(logits, tokens, [2]).tolist() == [False, True]


ONE_SURE_TWO_RIVALS = torch.tensor(
    [[0.40, 0.12, 0.12, 0.12, 0.12, 0.12], [0.50, 0.48, 0.005, 0.005, 0.005, 0.005]]
).log()


def test_margin_and_entropy_differ_where_two_tokens_rival() -> None:
    tokens = torch.zeros(2, dtype=torch.int64)
    margin = DiffusionSampler(Remasking.MARGIN)
    entropy = DiffusionSampler(Remasking.ENTROPY)
    assert margin.confidence(ONE_SURE_TWO_RIVALS, tokens).tolist() == pytest.approx([0.28, 0.02])
    assert margin(ONE_SURE_TWO_RIVALS, tokens, [2]).tolist() == [True, False]
    assert entropy(ONE_SURE_TWO_RIVALS, tokens, [2]).tolist() == [False, True]


def test_entropy_certainty_is_one_for_a_point_and_zero_for_a_flat_row() -> None:
    point = torch.full((V,), -math.inf).index_fill(0, torch.tensor([2]), 0.0)
    logits = torch.stack([torch.zeros(V), point])
    certainty = DiffusionSampler(Remasking.ENTROPY).confidence(logits, torch.tensor([0, 0]))
    assert certainty.tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
    assert certainty.min() >= 0.0


@pytest.mark.parametrize("remasking", [Remasking.ENTROPY, Remasking.MARGIN])
def test_a_threshold_is_held_against_the_measure_that_orders(remasking: Remasking) -> None:
    sampler = DiffusionSampler(remasking, threshold=0.25)
    tokens = torch.zeros(2, dtype=torch.int64)
    certain = sampler.confidence(ONE_SURE_TWO_RIVALS, tokens) >= 0.25
    assert certain.tolist().count(True) == 1
    assert torch.equal(sampler(ONE_SURE_TWO_RIVALS, tokens, [2]), certain)


def test_a_random_order_is_that_of_the_noise() -> None:
    logits, tokens = rows(0.9, 0.1, 0.5)
    sampler = DiffusionSampler(Remasking.RANDOM, num_steps=2)
    noise = torch.tensor([0.3, 0.8, 0.9])
    assert sampler(logits, tokens, [3], [0], noise).tolist() == [False, True, True]


def test_equal_confidences_go_from_left_to_right() -> None:
    assert revealed(DiffusionSampler(num_steps=2), *[0.5] * 200) == [*range(100)]


@pytest.mark.parametrize("remasking", list(Remasking))
def test_a_sequence_in_a_batch_reveals_what_it_reveals_alone(remasking: Remasking) -> None:
    generator = torch.Generator().manual_seed(5)
    counts, steps_done = [5, 1, 8, 3], [0, 2, 1, 2]
    logits = torch.randn(sum(counts), V, generator=generator) * 2
    tokens = torch.randint(V, (sum(counts),), generator=generator)
    noise = torch.rand(sum(counts), generator=generator)
    sampler = DiffusionSampler(remasking, num_steps=3)
    together = sampler(logits, tokens, counts, steps_done, noise)
    start = 0
    for count, done in zip(counts, steps_done, strict=True):
        own = slice(start, start + count)
        alone = sampler(logits[own], tokens[own], [count], [done], noise[own])
        assert torch.equal(together[own], alone)
        assert int(alone.sum()) == num_due(count, 3 - done)
        start += count


def test_a_batch_without_masks_reveals_nothing() -> None:
    nothing = torch.empty(0, V), torch.empty(0, dtype=torch.int64)
    assert DiffusionSampler()(*nothing, []).tolist() == []


def test_the_request_chooses_the_rule() -> None:
    options = GenerationOptions(
        denoising_steps=7, remasking=Remasking.MARGIN, confidence_threshold=0.4
    )
    assert DiffusionSampler.of(options) == DiffusionSampler(Remasking.MARGIN, 7, 0.4, None)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        (GenerationOptions(confidence_threshold=0.0, unmasking_factor=1.0), "unmasking_factor"),
        (GenerationOptions(confidence_threshold=0.0, remasking=Remasking.RANDOM), "remasking"),
        (GenerationOptions(unmasking_factor=1.0, remasking=Remasking.RANDOM), "remasking"),
    ],
)
def test_rules_that_contradict_each_other_are_refused(
    options: GenerationOptions, param: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        DiffusionSampler.of(options)
    assert caught.value.param == param
