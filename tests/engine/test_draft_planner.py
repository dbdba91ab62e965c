"""The step planner: pure functions of costs and of luck so far."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.acceptance_model import AcceptanceModel, Credit
from engine.draft_planner import Candidate, CostCurve, plan_lengths

FLAT = [(1, 1.0), (64, 1.0)]
STEEP = [(1, 1.0), (64, 64.0)]
CHEAP = [(1, 0.05), (16, 0.05)]


def rate(
    candidates: list[Candidate], lengths: list[int], verify: CostCurve, draft: CostCurve
) -> float:
    """Expected tokens a second of a plan, worked out afresh."""
    gained = sum(1 + sum(c.survivals[:n]) for c, n in zip(candidates, lengths, strict=True))
    num_blocks = sum(n > 0 for n in lengths)
    cost = verify(len(candidates) + sum(lengths)) + (draft(num_blocks) if num_blocks else 0.0)
    return gained / cost


@st.composite
def candidate(draw: st.DrawFn, fixed: bool = False) -> Candidate:
    chances = draw(st.lists(st.floats(0.0, 0.98), max_size=7))
    survivals = [1.0]
    for chance in chances:
        survivals.append(survivals[-1] * chance)
    length = draw(st.integers(0, len(chances))) if fixed else None
    return Candidate(survivals[1:], length)


@st.composite
def curve(draw: st.DrawFn) -> CostCurve:
    seconds = sorted(draw(st.lists(st.floats(1e-4, 1.0), min_size=3, max_size=3)))
    return CostCurve(list(zip((1, 8, 64), seconds, strict=True)))


@given(st.lists(candidate(), min_size=1, max_size=6), curve(), curve())
def test_a_plan_is_never_worse_than_no_draft(
    candidates: list[Candidate], verify: CostCurve, draft: CostCurve
) -> None:
    lengths = plan_lengths(candidates, verify, draft)
    for one, length in zip(candidates, lengths, strict=True):
        assert 0 <= length <= len(one.survivals)
    none = rate(candidates, [0] * len(candidates), verify, draft)
    assert rate(candidates, lengths, verify, draft) >= none * (1 - 1e-9)


@given(candidate(), curve(), curve())
def test_for_one_sequence_no_length_is_better(
    one: Candidate, verify: CostCurve, draft: CostCurve
) -> None:
    planned = rate([one], plan_lengths([one], verify, draft), verify, draft)
    best = max(rate([one], [n], verify, draft) for n in range(len(one.survivals) + 1))
    assert planned >= best * (1 - 1e-9)


@given(st.lists(st.one_of(candidate(), candidate(fixed=True)), max_size=6), curve(), curve())
def test_fixed_lengths_are_honoured(
    candidates: list[Candidate], verify: CostCurve, draft: CostCurve
) -> None:
    lengths = plan_lengths(candidates, verify, draft)
    for one, length in zip(candidates, lengths, strict=True):
        assert one.fixed_length is None or length == one.fixed_length


def test_rows_that_cost_nothing_are_all_drafted_and_dear_ones_are_not() -> None:
    one = Candidate([0.9, 0.8, 0.7], None)
    assert plan_lengths([one], CostCurve(FLAT), CostCurve(CHEAP)) == [3]
    assert plan_lengths([one], CostCurve(STEEP), CostCurve(CHEAP)) == [0]


def test_a_draft_stops_where_the_cost_of_rows_rises() -> None:
    verify = CostCurve([(1, 1.0), (4, 1.0), (8, 9.0)])
    one = Candidate([0.9, 0.85, 0.8, 0.75, 0.7], None)
    assert plan_lengths([one], verify, CostCurve(CHEAP)) == [3]


def test_a_drafter_dearer_than_what_it_gains_is_not_asked() -> None:
    one = Candidate([0.5, 0.25], None)
    assert plan_lengths([one], CostCurve(FLAT), CostCurve([(1, 0.8), (16, 0.8)])) == [0]


def test_the_lucky_get_longer_drafts_than_the_unlucky() -> None:
    lucky, unlucky = Candidate([0.95, 0.9, 0.85], None), Candidate([0.2, 0.04, 0.01], None)
    verify = CostCurve([(1, 1.0), (2, 1.0), (64, 20.0)])
    lengths = plan_lengths([unlucky, lucky], verify, CostCurve(CHEAP))
    assert lengths[1] > lengths[0]


def test_a_dear_block_is_paid_for_few_sequences_and_long_drafts() -> None:
    """Many short drafts would have the likelier tokens, but a block each."""
    candidates = [Candidate([0.9, 0.85, 0.8, 0.75], None) for _ in range(3)]
    candidates += [Candidate([0.86, 0.1, 0.0, 0.0], None) for _ in range(3)]
    verify = CostCurve([(6, 1.0), (30, 2.0)])
    lengths = plan_lengths(candidates, verify, CostCurve([(1, 0.2), (6, 1.2)]))
    assert min(lengths[:3]) > 0 and max(lengths[3:]) == 0


def test_where_rows_are_free_up_to_a_number_they_are_spread_over_all() -> None:
    candidates = [Candidate([0.9, 0.8, 0.7, 0.6], None) for _ in range(8)]
    verify = CostCurve([(8, 1.0), (24, 1.0), (40, 4.0)])
    lengths = plan_lengths(candidates, verify, CostCurve([(1, 0.1), (8, 0.11)]))
    assert lengths == [2] * 8


def test_nobody_to_plan_for_is_no_fault() -> None:
    assert plan_lengths([], CostCurve(FLAT), CostCurve(CHEAP)) == []


def test_a_cost_curve_goes_through_its_points_and_on_beyond() -> None:
    curve = CostCurve([(1, 1.0), (4, 4.0), (16, 10.0)])
    assert [curve(n) for n in (1, 4, 10, 16)] == [1.0, 4.0, 7.0, 10.0]
    assert curve(28) == pytest.approx(16.0)


def test_more_rows_are_never_timed_as_cheaper() -> None:
    """Or beyond its last point the curve would fall to nothing, and everything be drafted."""
    curve = CostCurve([(1, 0.02), (4, 0.01), (16, 0.03), (64, 0.025)])
    costs = [curve(size) for size in (1, 2, 4, 10, 16, 40, 64, 100, 2000)]
    assert all(low <= high for low, high in pairwise(costs))


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), max_size=50), st.sampled_from("ab")
)
def test_survivals_fall_and_are_probabilities(steps: list[tuple[int, int]], name: str) -> None:
    model = AcceptanceModel(5)
    for drafted, accepted in steps:
        model.update("a", drafted, min(drafted, accepted))
    survivals = model.survivals(name, 5)
    assert len(survivals) == 5
    assert all(0 <= low <= high < 1 for high, low in pairwise(survivals))


def test_acceptance_converges_to_what_happens_and_follows_a_change() -> None:
    chance = random.Random(0)
    model = AcceptanceModel(4)
    for truth in ((0.9, 0.6, 0.3, 0.8), (0.2, 0.5, 0.7, 0.4)):
        for _ in range(15000):
            accepted = 0
            while accepted < 4 and chance.random() < truth[accepted]:
                accepted += 1
            model.update("a", 4, accepted)
        estimates = [model.conditional(j) for j in range(4)]
        assert estimates == pytest.approx(truth, abs=0.15)


def test_an_easy_text_is_told_from_a_hard_one_and_forgotten_with_its_sequence() -> None:
    model = AcceptanceModel(3)
    for _ in range(50):
        model.update("easy", 3, 3)
        model.update("hard", 3, 0)
    assert model.survivals("easy", 1)[0] > model.survivals("new", 1)[0]
    assert model.survivals("hard", 1)[0] < model.survivals("new", 1)[0]
    for name in ("easy", "hard", "never seen"):
        model.forget(name)
    assert model.survivals("easy", 3) == model.survivals("new", 3)


def test_luck_is_believed_only_where_it_lasts() -> None:
    chance = random.Random(0)
    lasting, passing = AcceptanceModel(4), AcceptanceModel(4)
    for step in range(3000):
        name = str(step // 20)
        own = 0.9 if step // 20 % 2 else 0.3
        for model, share in ((lasting, own), (passing, 0.6)):
            accepted = 0
            while accepted < 4 and chance.random() < share:
                accepted += 1
            model.update(name, 4, accepted)
    for model in (lasting, passing):
        for _ in range(3):
            model.update("unlucky", 4, 0)
    told = [model.survivals("unlucky", 1)[0] / model.conditional(0) for model in (lasting, passing)]
    assert told[0] < 0.75 and told[1] > 0.9


def test_what_chosen_drafts_promise_is_held_against_what_they_keep() -> None:
    credit = Credit()
    assert credit.share == 1.0
    for _ in range(400):
        credit.update(10.0, 8)
    assert credit.share == pytest.approx(0.8, abs=0.02)
    for _ in range(40000):
        credit.update(0.0, 0)
    assert credit.share == pytest.approx(1.0, abs=0.02), "nothing was promised for long"


def test_a_sequence_that_was_given_up_is_tried_again() -> None:
    model = AcceptanceModel(4)
    for _ in range(20):
        model.update("unlucky", 4, 0)
        model.update("other", 4, 4)
    low = model.survivals("unlucky", 4)[0]
    assert low < 0.6 * model.survivals("new", 4)[0]
    for _ in range(40):
        model.rest("unlucky")
    assert model.survivals("unlucky", 4) == pytest.approx(model.survivals("new", 4), rel=0.05)


def test_cut_off_tokens_keep_deep_positions_from_being_judged_by_good_drafts_alone() -> None:
    """Half the drafts are sure and half hopeless; the hopeless ones are cut after one token."""
    model, blind = AcceptanceModel(4), AcceptanceModel(4)
    chance = random.Random(0)
    for _ in range(1500):
        is_sure = chance.random() < 0.5
        num_verified, deep = (4, 0.95) if is_sure else (1, 0.1)
        accepted = 1
        while accepted < num_verified and chance.random() < deep:
            accepted += 1
        cut_off = [] if is_sure else [deep] * 3
        model.update("a", num_verified, accepted, cut_off)
        blind.update("a", num_verified, accepted)
    assert model.conditional(1) == pytest.approx(0.525, abs=0.06)
    assert blind.conditional(1) > 0.9


def test_what_was_cut_off_after_a_refusal_was_never_to_be_tried() -> None:
    model, same = AcceptanceModel(4), AcceptanceModel(4)
    model.update("a", 2, 1, [0.9, 0.9])
    same.update("a", 2, 1)
    assert model.survivals("a", 4) == same.survivals("a", 4)
