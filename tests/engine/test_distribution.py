"""Both rules keep the verifier's distribution: chi-square of two tokens' joint law, many seeds.

The seeds are fixed, so each of these tests either always passes or always fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Seq

import pytest
import torch
from torch import Tensor

from engine.decoding import rejection
from engine.decoding.rejection import Layout, committed_tokens, verify_by_rejection
from engine.decoding.sampler import processed_logprobs, sample
from engine.decoding.sampling_table import SamplingTable
from engine.decoding.verification import count_accepted_prefix
from engine.request.sampling_params import SamplingParams

NUM_SEEDS = 9000
NUM_TOKENS = 4
ONE_IN_10_000 = 3.719  # the normal quantile
TABLE = SamplingTable.build(
    [(SamplingParams(seed=seed, temperature=0.8), 0, 0) for seed in range(NUM_SEEDS)]
)


def chain(seed: int) -> Tensor:
    """Logits [position, token before, token]; before the first stands token 0."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, NUM_TOKENS, NUM_TOKENS, generator=generator)


VERIFIER, DRAFTER = chain(1), chain(2)

Verify = Callable[[Tensor, Tensor, Tensor, list[int], Tensor, int], list[list[int]]]
"""Target rows, draft rows, draft, lengths, sequences, first position -> what each commits."""


def by_rejection(
    target: Tensor, drafted: Tensor, draft: Tensor, lengths: list[int], index: Tensor, first: int
) -> list[list[int]]:
    layout = Layout.of(lengths)
    owner = index[torch.repeat_interleave(layout.lengths + 1)]
    p = processed_logprobs(target, TABLE, owner)
    q = processed_logprobs(drafted, TABLE, index[layout.owner])
    positions = torch.full_like(index, first)
    verdict = verify_by_rejection(p, q, draft, lengths, TABLE, index, positions)
    return committed_tokens(draft, lengths, verdict)


def by_coupling(
    target: Tensor, drafted: Tensor, draft: Tensor, lengths: list[int], index: Tensor, first: int
) -> list[list[int]]:
    wide = Layout.of([length + 1 for length in lengths])
    drawn = sample(target, TABLE, index[wide.owner], first + wide.offset)
    targets = [own.tolist() for own in drawn.split([length + 1 for length in lengths])]
    drafts = [own.tolist() for own in draft.split(lengths)]
    return [
        target[: count_accepted_prefix(own, target) + 1]
        for own, target in zip(drafts, targets, strict=True)
    ]


def one_round(
    index: Tensor, before: Tensor, position: int, lengths: Seq[int], verify: Verify
) -> list[list[int]]:
    """Draft left to right, so many tokens for each sequence, and verify."""
    longest = max(lengths)
    tokens, drafted = [before], []
    for j in range(position, position + longest):
        drafted.append(DRAFTER[j, tokens[-1]])
        tokens.append(sample(drafted[-1], TABLE, index, torch.full_like(index, j)))
    target = torch.stack([VERIFIER[position + j, tokens[j]] for j in range(longest + 1)], 1)
    lengths_row = torch.tensor(lengths)[:, None]
    kept = torch.arange(longest) < lengths_row
    rows = target[torch.arange(longest + 1) <= lengths_row]
    draft = torch.stack(tokens[1:], 1)[kept]
    return verify(rows, torch.stack(drafted, 1)[kept], draft, list(lengths), index, position)


def two_tokens(verify: Verify) -> tuple[Tensor, Tensor]:
    """The first two tokens of every seed [N, 2], and how many the first round committed [N]."""
    index = torch.arange(NUM_SEEDS)
    lengths = [seed % 3 for seed in range(NUM_SEEDS)]
    output = one_round(index, index * 0, 0, lengths, verify)
    num_committed = torch.tensor([len(tokens) for tokens in output])
    short = (num_committed == 1).nonzero().squeeze(1)
    before = torch.tensor([output[i][0] for i in short.tolist()])
    again = one_round(short, before, 1, [1] * len(short), verify)
    for i, tokens in zip(short.tolist(), again, strict=True):
        output[i] += tokens
    return torch.tensor([tokens[:2] for tokens in output]), num_committed


def excess(tokens: Tensor) -> tuple[float, float]:
    """Chi-square of first tokens and of pairs, each over its critical value: above 1 is refused."""
    p = (VERIFIER.double() / 0.8).softmax(-1)
    joint = p[0, 0][:, None] * p[1]
    return (
        _excess(tokens[:, 0], p[0, 0]),
        _excess(tokens[:, 0] * NUM_TOKENS + tokens[:, 1], joint.flatten()),
    )


def _excess(drawn: Tensor, p: Tensor) -> float:
    expected = p * len(drawn)
    counts = torch.bincount(drawn, minlength=len(p))
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    freedom = len(p) - 1
    shift = 2 / (9 * freedom)  # Wilson and Hilferty
    return statistic / (freedom * (1 - shift + ONE_IN_10_000 * math.sqrt(shift)) ** 3)


@pytest.mark.parametrize("verify", [by_rejection, by_coupling])
def test_one_and_two_tokens_have_the_verifiers_distribution(verify: Verify) -> None:
    tokens, num_committed = two_tokens(verify)
    first, pair = excess(tokens)
    assert (first < 1.0, pair < 1.0) == (True, True), (first, pair)
    assert len(set(num_committed.tolist())) == 3, "every number should have been committed"


def test_the_rule_of_p_over_q_accepts_more_than_the_coupled_rule() -> None:
    """1 - TV against no less than (1 - TV) / (1 + TV): what one pays for the same tokens."""
    drafted = torch.arange(NUM_SEEDS) % 3 > 0
    rates = []
    for verify in (by_rejection, by_coupling):
        _, num_committed = two_tokens(verify)
        rates.append((num_committed[drafted] > 1).double().mean().item())
    p, q = ((logits[0, 0].double() / 0.8).softmax(-1) for logits in (VERIFIER, DRAFTER))
    distance = 0.5 * (p - q).abs().sum().item()
    assert rates[0] == pytest.approx(1.0 - distance, abs=0.03)
    assert (1.0 - distance) / (1.0 + distance) - 0.03 < rates[1] < rates[0]


def without_residual(p: Tensor, q: Tensor, num_accepted: Tensor, layout: Layout) -> Tensor:
    everything = torch.full_like(q, -math.inf)
    return RIGHT_RESIDUAL(p, everything, num_accepted, layout)


def of_the_last_row(p: Tensor, q: Tensor, num_accepted: Tensor, layout: Layout) -> Tensor:
    return RIGHT_RESIDUAL(p, q, layout.lengths.clone(), layout)


RIGHT_RESIDUAL = rejection.residual
RIGHT_UNIFORM = rejection.uniform
RIGHT_ACCEPTANCE = rejection.acceptance


def with_the_drafts_own_noise(*numbers: Tensor) -> Tensor:
    return RIGHT_UNIFORM(*numbers[:4], numbers[4] * 0)


BROKEN = {
    "the refused token may be drawn again": ("residual", without_residual),
    "what follows is read from the last row": ("residual", of_the_last_row),
    "the test is not independent of the draft": ("uniform", with_the_drafts_own_noise),
    "everything is accepted": ("acceptance", lambda p, q: RIGHT_ACCEPTANCE(p * 0, q * 0)),
    "accepted by p alone": ("acceptance", lambda p, q: RIGHT_ACCEPTANCE(p, q * 0)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejection, *BROKEN[name])
    assert max(excess(two_tokens(by_rejection)[0])) > 1.0


def test_a_residual_drawn_with_the_drafts_own_noise_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = rejection.gumbel

    def shared(*numbers: Tensor | int) -> Tensor:
        return right(*numbers[:5])  # type: ignore[arg-type]

    monkeypatch.setattr(rejection, "gumbel", shared)
    assert max(excess(two_tokens(by_rejection)[0])) > 1.0
