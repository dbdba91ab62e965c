"""Stints: who goes on with which lengths, and that resting quickly is resting all the same."""

from __future__ import annotations

from random import Random

from engine.draft_planner import CostCurve
from engine.plan_stints import Ask, Stint
from engine.step_costs import DraftCosts, StepShape
from engine.step_planner import StepPlanner, StepTime


def asks_of(limits: dict[str, int]) -> list[Ask]:
    return [Ask(name, limit) for name, limit in limits.items()]


def go_on(stint: Stint, limits: dict[str, int]) -> list[int] | None:
    asks = asks_of(limits)
    lengths = stint.go_on(list(limits), asks.__getitem__)
    return None if lengths is None else list(lengths)


def test_who_is_new_gets_what_was_planned_and_not_what_the_last_one_had_room_for() -> None:
    stint = Stint()
    stint.begin(asks_of({"a": 7, "b": 7}), [6, 6], num_steps=100)
    assert go_on(stint, {"a": 2, "b": 7}) == [2, 6]
    assert go_on(stint, {"a": 1, "b": 7}) == [1, 6]
    assert go_on(stint, {"c": 7, "b": 4}) == [6, 4]
    assert go_on(stint, {"c": 7, "d": 7}) == [6, 6]


def test_a_batch_that_is_mostly_new_is_planned_for_anew() -> None:
    stint = Stint()
    stint.begin(asks_of({"a": 7, "b": 7, "c": 7}), [6, 6, 6], num_steps=100)
    assert go_on(stint, {"d": 7, "e": 7, "c": 7}) is None
    assert go_on(stint, {"c": 7}) is None
    assert go_on(stint, {"a": 7, "b": 7, "d": 7}) == [6, 6, 6]


def test_resting_quickly_comes_to_the_same_as_observing_every_step() -> None:
    told, passed = [], 0
    for is_quick in (False, True):
        drafts = DraftCosts(CostCurve([(1, 4e-3), (16, 64e-3)]))
        planner = StepPlanner(7, CostCurve([(1, 1e-3), (64, 3e-3)]), drafts)
        random = Random(5)
        for _ in range(600):
            lengths = planner.plan(["a", "b"], asks_of({"a": 7, "b": 7}).__getitem__)
            if not planner.is_resting:
                planner.charge(1e-4)
            drafting_s = 8e-3 if any(lengths) else 0.0
            for name, length in zip(("a", "b"), lengths, strict=True):
                planner.take(name, length, length // 4)
            step = StepTime(
                StepShape(2, 2 + sum(lengths)), drafting_s + random.uniform(9e-4, 11e-4), drafting_s
            )
            if is_quick and not drafting_s and planner.pass_rest(step.shape, step.seconds):
                passed += 1
            else:
                planner.observe(step)
        told.append(planner.get_stats())
    assert passed > 300
    for name, value in told[0].items():
        assert abs(told[1][name] - value) <= 1e-6 * abs(value), name
