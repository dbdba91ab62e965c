"""Which rule keeps the verifier's distribution for which draft: by counting every outcome.

The toy writes two of three tokens. A drafter of several denoising steps reveals the right one first
and the left one in its light; a drafter of one step draws both from marginals.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from engine.decoding.rejection import Layout, acceptance, residual
from engine.decoding.sampler import sample
from engine.decoding.sampling_table import SamplingTable
from engine.decoding.verification import count_accepted_prefix
from engine.request.sampling_params import SamplingParams

V = 3
FIRST = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)  # p(a)
SECOND = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]], dtype=torch.float64)
"""p(b | a), a row each."""
JOINT = FIRST[:, None] * SECOND

RIGHT = torch.tensor([0.4, 0.35, 0.25], dtype=torch.float64)  # q(b), of the first denoising step
LEFT = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.1, 0.6], [0.1, 0.6, 0.3]], dtype=torch.float64)
"""q(a | b), a row for each b: what the second denoising step says."""

Outcome = tuple[float, tuple[int, int], Tensor]
"""How probable a draft is, its tokens, and the two rows of q that it is judged by, [2, V]."""


def one_step() -> list[Outcome]:
    left = RIGHT @ LEFT
    rows = torch.stack([left, RIGHT])
    return [((left[a] * RIGHT[b]).item(), (a, b), rows) for a, b in product(range(V), repeat=2)]


def left_to_right() -> list[Outcome]:
    """As with a chained head: the second row hangs on the first token, never the reverse."""
    return [
        ((RIGHT[a] * LEFT[a, b]).item(), (a, b), torch.stack([RIGHT, LEFT[a]]))
        for a, b in product(range(V), repeat=2)
    ]


def two_steps() -> list[Outcome]:
    """Judged by the rows from which each token was drawn, at the step of its reveal."""
    return [
        ((RIGHT[b] * LEFT[b, a]).item(), (a, b), torch.stack([LEFT[b], RIGHT]))
        for a, b in product(range(V), repeat=2)
    ]


def two_steps_as_point_masses() -> list[Outcome]:
    """The same drafts, taken as given: q is 1 at the drafted token."""
    one_hot = torch.eye(V, dtype=torch.float64)
    return [(weight, (a, b), one_hot[[a, b]]) for weight, (a, b), _ in two_steps()]


def law_of_output(drafts: list[Outcome]) -> Tensor:
    """Exact joint law of two tokens under the rule of p/q, [V, V]."""
    law = torch.zeros(V, V, dtype=torch.float64)
    for weight, (a, b), q in drafts:
        target = torch.stack([FIRST, SECOND[a], torch.ones(V).double() / V]).log()
        stands = acceptance(target[[0, 1], [a, b]], q.log()[[0, 1], [a, b]]).tolist()
        after = [next_token_law(target, q, num_accepted) for num_accepted in (0, 1)]
        law += weight * (1.0 - stands[0]) * after[0][:, None] * SECOND
        law[a] += weight * stands[0] * (1.0 - stands[1]) * after[1]
        law[a, b] += weight * stands[0] * stands[1]
    assert law.sum().item() == pytest.approx(1.0)
    return law


def next_token_law(target: Tensor, q: Tensor, num_accepted: int) -> Tensor:
    weights = residual(target, q.log(), torch.tensor([num_accepted]), Layout.of([2]))[0]
    return weights / weights.sum()


def distance(law: Tensor, expected: Tensor) -> float:
    return 0.5 * (law - expected).abs().sum().item()


@pytest.mark.parametrize("drafts", [one_step, left_to_right, two_steps_as_point_masses])
def test_the_rule_of_p_over_q_is_lossless_where_each_token_was_drawn_from_its_row(
    drafts: Callable[[], list[Outcome]],
) -> None:
    assert distance(law_of_output(drafts()), JOINT) < 1e-12


def test_it_is_not_lossless_for_a_draft_of_several_steps() -> None:
    """A draft whose left token stood is no longer a fair draw of its right token."""
    law = law_of_output(two_steps())
    assert distance(law, JOINT) > 0.02
    # The first token alone would not show it: for each right token the left one is judged fairly.
    assert distance(law.sum(1), FIRST) < 1e-12


NUM_NOISES = 3000
TABLE = SamplingTable.build([(SamplingParams(seed=seed), 0, 0) for seed in range(NUM_NOISES)])
INDEX = torch.arange(NUM_NOISES)


def drawn(p: Tensor, position: int) -> Tensor:
    """p: [V] or one row a noise -> [N], with the noise of the position."""
    rows = p.log().expand(NUM_NOISES, V)
    return sample(rows, TABLE, INDEX, torch.full_like(INDEX, position))


def coupled_output(draft: Tensor) -> tuple[Tensor, Tensor]:
    """Output [N, 2] under shared noise, whatever was drafted, and how much stood [N]."""
    target = torch.stack([drawn(FIRST, 0), drawn(SECOND[draft[:, 0]], 1)], 1)
    rows = zip(draft.tolist(), target.tolist(), strict=True)
    num_accepted = torch.tensor([count_accepted_prefix(*row) for row in rows])
    again = drawn(SECOND[target[:, 0]], 1)  # the next step, where only one token was committed
    second = torch.where(num_accepted > 0, target[:, 1], again)
    return torch.stack([target[:, 0], second], 1), num_accepted


def test_under_shared_noise_the_output_is_a_function_of_the_noise_alone() -> None:
    """Every draft there is, for every noise: so the drafter, and its steps, cannot matter."""
    first = drawn(FIRST, 0)
    plain = torch.stack([first, drawn(SECOND[first], 1)], 1)
    seen = set()
    for a, b in product(range(V), repeat=2):
        output, num_accepted = coupled_output(torch.tensor([a, b]).expand(NUM_NOISES, 2))
        assert torch.equal(output, plain)
        seen |= set(num_accepted.tolist())
    assert seen == {0, 1, 2}


def test_under_shared_noise_a_draft_of_several_steps_changes_nothing() -> None:
    right = drawn(RIGHT, 1)
    draft = torch.stack([drawn(LEFT[right], 0), right], 1)
    output, num_accepted = coupled_output(draft)
    first = drawn(FIRST, 0)
    assert torch.equal(output, torch.stack([first, drawn(SECOND[first], 1)], 1))
    assert set(num_accepted.tolist()) == {0, 1, 2}
    # And the law is the verifier's: within five standard deviations everywhere.
    counts = torch.bincount(output[:, 0] * V + output[:, 1], minlength=V * V)
    expected = JOINT.flatten() * NUM_NOISES
    deviation = (counts - expected).abs() / (expected * (1 - JOINT.flatten())).sqrt()
    assert deviation.max().item() < 5.0
