"""Costs that are learnt from whole steps: what is seen, and what that says of the rest."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.draft_planner import CostCurve
from engine.step_costs import DraftCosts, StepCosts, StepShape

TIMED = CostCurve([(1, 3e-3), (4, 4e-3), (16, 8e-3), (64, 20e-3), (128, 40e-3)])
UNDRAFTED, DRAFTED = StepShape(8, 8), StepShape(8, 32)


def test_before_anything_was_seen_costs_are_what_start_up_timed() -> None:
    costs = StepCosts(TIMED)
    for shape in (UNDRAFTED, DRAFTED, StepShape(3, 5)):
        assert costs(shape) == pytest.approx(TIMED(shape.num_rows))


def test_batches_that_start_up_timed_count_more_than_forwards_of_as_many_rows() -> None:
    """And leave room for doubt: a step is more than its forward."""
    seconds = {(n, n * width): 1e-3 + n * width * 1e-4 for n in (1, 2, 4, 8) for width in (1, 4, 8)}
    timed = [(StepShape(*shape), taken) for shape, taken in seconds.items()]
    costs = StepCosts(TIMED, timed)
    for shape, taken in timed:
        assert costs(shape) == pytest.approx(taken, rel=0.03)
    assert costs(StepShape(3, 24)) == pytest.approx(3.4e-3, rel=0.1), "between two sizes"
    doubt = costs.doubt(UNDRAFTED, StepShape(8, 64))
    assert 0.1 < doubt < StepCosts(TIMED).doubt(UNDRAFTED, StepShape(8, 64)) / 2
    for _ in range(20):
        costs.update(UNDRAFTED, 2.7e-3)
    assert costs(UNDRAFTED) == pytest.approx(2.7e-3, rel=0.05)
    assert costs(StepShape(8, 64)) == pytest.approx(7.4e-3 * 1.5, rel=0.15), "a slower machine"


def test_both_kinds_of_steps_are_learnt_whatever_start_up_said() -> None:
    costs, random = StepCosts(TIMED), Random(0)
    truth = {UNDRAFTED: 20e-3, DRAFTED: 25e-3}
    for number in range(1000):
        shape = DRAFTED if number % 8 == 0 else UNDRAFTED
        costs.update(shape, truth[shape] * math.exp(random.gauss(0.0, 0.1)))
    for shape, seconds in truth.items():
        assert costs(shape) == pytest.approx(seconds, rel=0.06)


def test_a_busy_machine_moves_what_is_not_seen_as_well() -> None:
    costs = StepCosts(TIMED)
    for _ in range(300):
        costs.update(UNDRAFTED, 6e-3)
        costs.update(DRAFTED, 12e-3)
    slower = math.prod(costs.update(UNDRAFTED, 18e-3) for _ in range(300))
    assert costs(UNDRAFTED) == pytest.approx(18e-3, rel=0.03)
    assert costs(DRAFTED) == pytest.approx(36e-3, rel=0.25)
    assert slower == pytest.approx(3.0, rel=0.25)


def test_one_outlier_hardly_moves_what_is_known_and_is_not_taken_for_knowledge() -> None:
    known, new = StepCosts(TIMED), StepCosts(TIMED)
    random = Random(0)
    for _ in range(100):
        known.update(UNDRAFTED, 6e-3 * math.exp(random.gauss(0.0, 0.05)))
    known.update(UNDRAFTED, 6.0)
    assert known(UNDRAFTED) == pytest.approx(6e-3, rel=0.1)
    doubt = new.doubt(UNDRAFTED, DRAFTED)
    new.update(DRAFTED, 6.0)
    assert new.doubt(UNDRAFTED, DRAFTED) == pytest.approx(doubt, rel=0.01)


def test_doubt_goes_with_measuring_and_comes_back_with_time() -> None:
    costs = StepCosts(TIMED)
    at_first = costs.doubt(UNDRAFTED, DRAFTED)
    for _ in range(50):
        costs.update(UNDRAFTED, 6e-3)
        costs.update(DRAFTED, 12e-3)
    measured = costs.doubt(UNDRAFTED, DRAFTED)
    assert measured < at_first / 4
    for _ in range(20000):
        costs.update(UNDRAFTED, 6e-3)
    assert costs.doubt(UNDRAFTED, DRAFTED) > measured * 1.5
    assert costs.doubt(DRAFTED, DRAFTED) == 0.0


def test_prompts_read_in_a_step_are_not_laid_to_the_account_of_those_who_decode() -> None:
    costs = StepCosts(TIMED)
    for _ in range(200):
        costs.update(UNDRAFTED, 6e-3)
        costs.update(UNDRAFTED, 6e-3 + 90e-3, num_prefill_rows=200)
    assert costs(UNDRAFTED) == pytest.approx(6e-3, rel=0.05)
    for _ in range(400):
        costs.update(UNDRAFTED, 9e-3 + 90e-3, num_prefill_rows=200)
    assert costs(UNDRAFTED) > 6.1e-3, "where there is always a prompt, it is all there is to see"


@given(st.lists(st.tuples(st.integers(1, 90), st.integers(0, 200), st.floats(1e-6, 10.0))))
def test_costs_by_rows_are_those_of_the_shapes_and_never_nothing(
    steps: list[tuple[int, int, float]],
) -> None:
    costs = StepCosts(TIMED)
    for sequences, more, seconds in steps:
        costs.update(StepShape(sequences, sequences + more), seconds)
    by_rows = costs.by_rows(8)
    for width in (1, 2, 3, 8):
        assert by_rows(8 * width) == pytest.approx(costs(StepShape(8, 8 * width)))
    for num_rows in (8, 11, 30, 300, 3000):
        assert 0.0 < by_rows(num_rows) < math.inf


def test_drafting_costs_follow_what_is_seen_of_them_and_the_machine() -> None:
    costs = DraftCosts(CostCurve([(1, 1e-3), (4, 2e-3), (16, 5e-3)]))
    for _ in range(100):
        costs.pass_step(1.0)
        costs.update(8, 9e-3)
    assert costs(8) == pytest.approx(9e-3, rel=0.03)
    for _ in range(100):
        costs.pass_step(1.01)  # steps without a draft, each slower than the one before
    assert costs(8) == pytest.approx(9e-3 * 1.01**100, rel=0.03)
    for _ in range(5):
        costs.update(8, 9e-3)
    assert costs(8) == pytest.approx(9e-3, rel=0.15), "what was not seen for long is believed soon"
