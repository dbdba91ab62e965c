"""The sampler against exact probabilities, and against itself in other company."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.decoding import sampler
from engine.decoding.noise_cache import NoiseCache
from engine.decoding.sampler import gather_logprobs, processed_logprobs, sample
from engine.decoding.sampling_table import SamplingTable
from engine.request.sampling_params import SamplingParams

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -1.0, -3.0])
NUM_DRAWS = 20_000


def table_of(*settings: dict[str, Any]) -> SamplingTable:
    return SamplingTable.build([(SamplingParams(**one), 0, 0) for one in settings])


def draw_many(logits: Tensor, num_draws: int = NUM_DRAWS, **settings: Any) -> Tensor:
    """Draws of one sequence at output positions 0, 1, 2, ..."""
    index = torch.zeros(num_draws, dtype=torch.int64)
    rows = logits.expand(num_draws, -1)
    return sample(rows, table_of(settings), index, torch.arange(num_draws))


def exact(logits: Tensor, temperature: float = 1.0, **filters: float) -> list[float]:
    """p~ in plain Python, from the definitions."""
    weights = [math.exp(value / temperature) for value in logits.tolist()]
    total = sum(weights)
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    if filters.get("top_k"):
        lowest = weights[order[int(filters["top_k"]) - 1]]
        order = [i for i in order if weights[i] >= lowest]
    order = [i for i in order if weights[i] >= filters.get("min_p", 0.0) * weights[order[0]]]
    total = sum(weights[i] for i in order)
    kept, mass, lowest = [], 0.0, math.inf
    for i in order:
        if mass / total >= filters.get("top_p", 1.0) and weights[i] < lowest:
            break
        kept.append(i)
        mass += weights[i]
        lowest = weights[i]
    return [weights[i] / mass if i in kept else 0.0 for i in range(len(weights))]


def chi_square_is_plausible(token_ids: Tensor, probabilities: list[float]) -> bool:
    """Pearson's statistic below its 1 - 1e-6 quantile (Wilson and Hilferty's approximation)."""
    counts = torch.bincount(token_ids, minlength=len(probabilities)).tolist()
    cells = [(n, p * len(token_ids)) for n, p in zip(counts, probabilities, strict=True)]
    if any(n > 0 and expected == 0.0 for n, expected in cells):
        return False
    cells = [(n, expected) for n, expected in cells if expected > 0.0]
    freedom = len(cells) - 1
    if freedom == 0:
        return True
    statistic = sum((n - expected) ** 2 / expected for n, expected in cells)
    shift = 2 / (9 * freedom)
    return statistic < freedom * (1 - shift + 4.753 * math.sqrt(shift)) ** 3


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 2.5},
        {"top_k": 1},
        {"top_k": 3, "temperature": 0.8},
        {"top_k": 5},  # the fifth and sixth tie: both stay
        {"top_p": 0.7},
        {"top_p": 0.95, "temperature": 1.7},
        {"min_p": 0.2},
        {"top_k": 4, "min_p": 0.1, "top_p": 0.8, "temperature": 1.3},
    ],
    ids=str,
)
def test_the_distribution_of_draws_is_the_exact_one(settings: dict[str, float]) -> None:
    probabilities = exact(LOGITS, **settings)
    token_ids = draw_many(LOGITS, **settings)
    assert chi_square_is_plausible(token_ids, probabilities)
    index = torch.zeros(1, dtype=torch.int64)
    logprobs = processed_logprobs(LOGITS[None], table_of(settings), index)
    assert logprobs.exp()[0].tolist() == pytest.approx(probabilities, abs=1e-6)


def test_the_chi_square_would_notice_a_wrong_distribution() -> None:
    assert not chi_square_is_plausible(draw_many(LOGITS, temperature=1.1), exact(LOGITS))
    assert not chi_square_is_plausible(draw_many(LOGITS), exact(LOGITS, top_k=6))


def test_neighbouring_seeds_draw_independently() -> None:
    tables = SamplingTable.build([(SamplingParams(seed=seed), 0, 0) for seed in range(4000)])
    index = torch.arange(4000)
    first, second = (
        sample(LOGITS.expand(4000, -1), tables, index, torch.full((4000,), position))
        for position in (0, 1)
    )
    pairs = first * len(LOGITS) + second
    p = exact(LOGITS)
    assert chi_square_is_plausible(pairs, [a * b for a in p for b in p])


def test_greedy_rows_take_the_lowest_of_equal_maxima_even_beside_drawn_rows() -> None:
    logits = torch.zeros(3, 9)
    logits[:, [4, 6, 8]] = 2.0
    greedy, drawn = {"temperature": 0.0}, {"temperature": 1.0}
    index = torch.arange(3)
    assert sample(logits, table_of(greedy, greedy, greedy), index, index).tolist() == [4, 4, 4]
    mixed = sample(logits, table_of(greedy, drawn, greedy), index, index)
    alone = sample(logits[1:2], table_of(drawn), torch.tensor([0]), torch.tensor([1]))
    assert mixed.tolist() == [4, alone.item(), 4]


def test_a_greedy_row_costs_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    rows_made: list[int] = []
    plain = sampler.gumbel

    def counting(seeds: Tensor, *rest: Any) -> Tensor:
        rows_made.append(len(seeds))
        return plain(seeds, *rest)

    monkeypatch.setattr(sampler, "gumbel", counting)
    logits, index = torch.randn(4, 50), torch.arange(4)
    greedy, drawn = {"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.5}
    sample(logits, table_of(greedy, greedy, greedy, greedy), index, index)
    sample(logits, table_of(greedy, drawn, greedy, drawn), index, index)
    assert rows_made == [2]


MIXED = [
    {"temperature": 0.7, "seed": 11},
    {"temperature": 0.0},
    {"temperature": 1.2, "seed": 12, "top_p": 0.9},
    {"temperature": 1.0, "seed": 2**64 - 1, "top_k": 40},
    {"temperature": 0.9, "seed": -5, "min_p": 0.05, "top_k": 400},
    {"temperature": 100.0, "seed": 3, "top_p": 0.999},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_drawn_the_same_alone_and_in_any_batch(dtype: torch.dtype) -> None:
    logits = (torch.randn(60, 3001, generator=torch.Generator().manual_seed(3)) * 4).to(dtype)
    table = table_of(*MIXED)
    index, positions = torch.arange(60) % len(MIXED), torch.arange(60) // 2
    together = sample(logits, table, index, positions)
    scores = processed_logprobs(logits, table, index)
    for row in range(0, 60, 7):
        own, at = table_of(MIXED[row % len(MIXED)]), slice(row, row + 1)
        zero = torch.zeros(1, dtype=torch.int64)
        assert sample(logits[at], own, zero, positions[at]).item() == together[row].item()
        assert torch.equal(processed_logprobs(logits[at], own, zero)[0], scores[row])
    shuffle = torch.randperm(60)
    assert torch.equal(
        sample(logits[shuffle], table, index[shuffle], positions[shuffle]), together[shuffle]
    )
    cached = sample(logits, table, index, positions, NoiseCache())
    assert torch.equal(cached, together)


def test_a_wide_row_is_the_same_alone_although_threads_may_share_it() -> None:
    logits = torch.randn(24, 151_936, generator=torch.Generator().manual_seed(9))
    table, index = table_of({"top_p": 0.8}), torch.zeros(24, dtype=torch.int64)
    together = processed_logprobs(logits, table, index)
    chosen = gather_logprobs(logits, index, 1)[0]
    for row in range(24):
        at = slice(row, row + 1)
        assert torch.equal(processed_logprobs(logits[at], table, index[:1])[0], together[row])
        assert torch.equal(gather_logprobs(logits[at], index[:1], 1)[0], chosen[at])


def test_top_p_finds_its_threshold_beyond_the_first_candidates() -> None:
    logits = torch.randn(2, 4000, generator=torch.Generator().manual_seed(5)) * 0.3
    logits[1] *= 20
    table = table_of({"top_p": 0.9}, {"top_p": 0.9})
    logprobs = processed_logprobs(logits, table, torch.arange(2))
    for row in range(2):
        assert logprobs[row].exp().tolist() == pytest.approx(
            exact(logits[row], top_p=0.9), abs=2e-6
        )
    assert (logprobs[0] > -torch.inf).sum().item() > sampler.FIRST_TOP_P_WIDTH


def test_a_tiny_temperature_draws_among_the_maxima_and_a_masked_token_is_never_drawn() -> None:
    assert set(draw_many(LOGITS, 200, temperature=1e-60).tolist()) == {0}
    tied = torch.tensor([1.0, 0.0, 1.0])
    assert set(draw_many(tied, 200, temperature=1e-60).tolist()) == {0, 2}
    assert table_of({"temperature": 1e-60}, {"temperature": 0.0}).is_greedy.tolist() == [
        False,
        True,
    ]
    masked = LOGITS.clone()
    masked[:3] = -torch.inf
    assert set(draw_many(masked, 500, temperature=100.0).tolist()) == {3, 4, 5, 6}


def test_prompts_and_choices_of_one_request_differ() -> None:
    params = SamplingParams(seed=4)
    entries = [(params, prompt, choice) for prompt in range(3) for choice in range(3)]
    table, index = SamplingTable.build(entries), torch.arange(9)
    flat = torch.zeros(9, 100_000)
    assert len(set(sample(flat, table, index, torch.zeros(9, dtype=torch.int64)).tolist())) == 9


def test_logprobs_are_those_of_the_raw_distribution() -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(8))
    token_ids = torch.tensor([0, 7, 299, 42, 1])
    reference = logits.log_softmax(-1)
    chosen, values, top_ids = gather_logprobs(logits, token_ids, 4)
    assert torch.allclose(chosen, reference[torch.arange(5), token_ids], atol=1e-5)
    assert torch.allclose(values, reference.topk(4).values, atol=1e-5)
    assert torch.equal(reference.gather(1, top_ids), reference.topk(4).values)
    assert [t.shape[1] for t in gather_logprobs(logits, token_ids, 0)[1:]] == [0, 0]
