"""The coupled rule: row by row, and as a whole loop on a toy model with exact probabilities."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine.decoding.sampler import processed_logprobs, sample
from engine.decoding.sampling_table import SamplingTable
from engine.decoding.verification import count_accepted_prefix
from engine.request.sampling_params import SamplingParams

NUM_TOKENS = 5
LENGTH = 12
Model = Callable[[list[int]], Tensor]


def test_each_row_accepts_for_itself() -> None:
    target = [1, 2, 3]
    drafts = ([1, 2, 3], [1, 9, 3], [9, 2, 3], [1, 2])
    # Nothing after a gap, nothing beyond the draft.
    assert [count_accepted_prefix(draft, target) for draft in drafts] == [3, 1, 0, 2]


def test_without_a_draft_nothing_is_accepted() -> None:
    assert count_accepted_prefix([], []) == 0
    assert count_accepted_prefix([], [1]) == 0


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=6))
def test_the_common_prefix_is_counted(row: list[tuple[int, int]]) -> None:
    differing = [at for at, (drafted, drawn) in enumerate(row) if drafted != drawn]
    expected = differing[0] if differing else len(row)
    draft, target = ([pair[side] for pair in row] for side in (0, 1))
    assert count_accepted_prefix(draft, target) == expected


def verifier(prefix: list[int]) -> Tensor:
    """Logits of a second-order Markov chain on five tokens."""
    generator = torch.Generator().manual_seed(
        100 + sum(t * 7**i for i, t in enumerate(prefix[-2:]))
    )
    return torch.randn(NUM_TOKENS, generator=generator) * 1.5


def good_drafter(prefix: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(7 * len(prefix))
    return verifier(prefix) + torch.randn(NUM_TOKENS, generator=generator) * 0.4


def bad_drafter(prefix: list[int]) -> Tensor:
    """Has nothing to do with the verifier, and so agrees with it by chance alone."""
    generator = torch.Generator().manual_seed(5000 + sum(prefix) + len(prefix))
    return torch.randn(NUM_TOKENS, generator=generator) * 1.5


def blind_drafter(prefix: list[int]) -> Tensor:
    """Knows the length alone: as a diffusion block that sees none of its own tokens."""
    return verifier([len(prefix) % NUM_TOKENS])


def table_for(seed: int, temperature: float) -> SamplingTable:
    return SamplingTable.build([(SamplingParams(seed=seed, temperature=temperature), 0, 0)])


def draw(rows: list[Tensor], table: SamplingTable, first_position: int) -> list[int]:
    positions = torch.arange(first_position, first_position + len(rows))
    tokens: list[int] = sample(torch.stack(rows), table, positions * 0, positions).tolist()
    return tokens


def generate_plainly(table: SamplingTable) -> list[int]:
    output: list[int] = []
    while len(output) < LENGTH:
        output += draw([verifier(output)], table, len(output))
    return output


def generate_speculatively(
    table: SamplingTable, drafter: Model, draft_length: int, accepted: Counter[bool]
) -> list[int]:
    output: list[int] = []
    while len(output) < LENGTH:
        draft: list[int] = []
        while len(draft) < draft_length:
            draft += draw([drafter(output + draft)], table, len(output) + len(draft))
        rows = [verifier(output + draft[:j]) for j in range(draft_length + 1)]
        target = draw(rows, table, len(output))
        count = count_accepted_prefix(draft, target)
        accepted.update({True: count, False: int(count < draft_length)})
        output += target[: count + 1]
    return output[:LENGTH]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("drafter", [good_drafter, bad_drafter, blind_drafter])
def test_speculation_writes_the_very_tokens_of_plain_sampling(
    drafter: Model, temperature: float
) -> None:
    accepted: Counter[bool] = Counter()
    for seed in range(6):
        table = table_for(seed, temperature)
        plain = generate_plainly(table)
        for draft_length in (1, 3, 5):
            output = generate_speculatively(table, drafter, draft_length, accepted)
            assert output == plain
    assert accepted[True] > 0
    assert accepted[False] > 0


def test_a_better_drafter_is_accepted_more_often() -> None:
    rates = {}
    for drafter in (good_drafter, bad_drafter):
        accepted: Counter[bool] = Counter()
        for seed in range(10):
            generate_speculatively(table_for(seed, 1.0), drafter, 3, accepted)
        rates[drafter] = accepted[True] / sum(accepted.values())
    assert rates[good_drafter] > rates[bad_drafter] + 0.15


def test_a_drafter_with_the_verifiers_own_distribution_is_always_accepted() -> None:
    accepted: Counter[bool] = Counter()
    for seed in range(10):
        generate_speculatively(table_for(seed, 1.3), verifier, 4, accepted)
    assert accepted[False] == 0


def test_the_first_two_tokens_have_their_exact_joint_distribution() -> None:
    """Enumerated: coupling keeps not only each token's distribution but that of a text."""
    num_seeds = 6000
    tables = SamplingTable.build([(SamplingParams(seed=s), 0, 0) for s in range(num_seeds)])
    index, zero = torch.arange(num_seeds), torch.zeros(num_seeds, dtype=torch.int64)
    # One round by hand for all seeds: draft one token, verify, take the correction or the bonus.
    draft = sample(bad_drafter([]).expand(num_seeds, -1), tables, index, zero)
    first = sample(verifier([]).expand(num_seeds, -1), tables, index, zero)
    after = torch.stack([verifier([token]) for token in range(NUM_TOKENS)])
    bonus = sample(after[draft], tables, index, zero + 1)
    again = sample(after[first], tables, index, zero + 1)  # the next step, after a rejection
    count = (draft == first).long()
    second = torch.where(count == 1, bonus, again)
    plain = SamplingTable.build([(SamplingParams(), 0, 0)])
    logprobs = processed_logprobs(torch.cat([verifier([])[None], after]), plain, zero[:6])
    p = logprobs.exp().double()
    expected = (p[0][:, None] * p[1:]).flatten() * num_seeds
    counts = torch.bincount(first * NUM_TOKENS + second, minlength=NUM_TOKENS**2)
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    freedom = NUM_TOKENS**2 - 1
    shift = 2 / (9 * freedom)
    assert statistic < freedom * (1 - shift + 4.753 * math.sqrt(shift)) ** 3
    assert 0 < int(count.sum()) < num_seeds
