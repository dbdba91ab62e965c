"""The rule of a canvas of random tokens, against transformers' own classes on random logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    EntropyBoundSampler,
    EntropyBoundSamplerConfig,
    LinearTemperatureScheduleLogitsProcessor,
    StableAndConfidentStoppingCriteria,
)

from engine.base import EntropyComputer
from engine.decoding.entropy_bound import EntropyBound

LENGTH, VOCAB = 32, 50
entropy = EntropyComputer()


def logits_of(seed: int, *, spread: float = 6.0) -> Tensor:
    """Rows from nearly certain to nearly flat."""
    generator = torch.Generator().manual_seed(seed)
    scale = spread * torch.rand(LENGTH, 1, generator=generator)
    return scale * torch.randn(LENGTH, VOCAB, generator=generator)


@pytest.mark.parametrize("bound", [1e-6, 0.1, 2.0, 30.0])
def test_the_tokens_that_stand_are_those_of_transformers(bound: float) -> None:
    sampler = EntropyBoundSampler(EntropyBoundSamplerConfig(bound), LENGTH, VOCAB, 48)
    counts = set()
    for seed in range(20):
        logits = logits_of(seed)
        nothing = torch.zeros(1, LENGTH, dtype=torch.int64)
        sampler.accept_canvas(nothing, nothing, logits[None], 1)
        found = EntropyBound(entropy_bound=bound).accepted(entropy(logits))
        assert found.tolist() == sampler.accepted_token_mask[0].tolist()
        counts.add(int(found.sum()))
    assert len(counts) > 1 or bound == 1e-6
    assert min(counts) >= 1, "a pass without any progress"


def test_equally_sure_tokens_stand_from_left_to_right() -> None:
    found = EntropyBound(entropy_bound=0.25).accepted(torch.full((5,), 0.125))
    assert found.tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("stability", [0, 1, 2])
def test_a_canvas_is_done_when_transformers_says_so(stability: int) -> None:
    rule = EntropyBound(stability_threshold=stability, confidence_threshold=0.5)
    criteria = StableAndConfidentStoppingCriteria(stability, 0.5)
    guesses: list[list[int]] = []
    verdicts = []
    for seed, spread in [(0, 90.0), (0, 1.0), (0, 90.0), (0, 80.0), (1, 90.0), (1, 90.0)]:
        logits = logits_of(seed, spread=spread)
        guess = logits.argmax(-1).tolist()
        expected = criteria(torch.tensor([guess]), logits[None])
        mean = float(entropy(logits).mean())
        verdicts.append(rule.is_done(mean, guess, guesses))
        assert verdicts[-1] == bool(expected)
        guesses.append(guess)
    assert True in verdicts and False in verdicts


def test_temperatures_fall_as_in_transformers() -> None:
    rule = EntropyBound(num_steps=7, t_min=0.3, t_max=0.9)
    schedule = LinearTemperatureScheduleLogitsProcessor(0.3, 0.9, 7)
    for num_done in range(7):
        one = torch.ones(1)
        expected = schedule(one, one, cur_step=7 - num_done)
        torch.testing.assert_close(one / rule.temperature(num_done), expected)
    assert rule.temperature(0) == pytest.approx(0.9)
