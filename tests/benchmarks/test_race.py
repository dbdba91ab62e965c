"""A race of settings: pieces in turn, sums by round, and the end for those far behind."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean

from benchmarks.race import Piece, RaceRules, race, rate
from benchmarks.rounds import paired, spread


class Course:
    """Cases of given rates, and the order in which they were called."""

    def __init__(self, **rates: float) -> None:
        self.calls: list[tuple[str, int]] = []
        self.cases: dict[str, Piece] = {
            name: lambda number, n=name, r=rate: self._piece(n, r, number)
            for name, rate in rates.items()
        }

    def _piece(self, name: str, rate: float, number: int) -> Mapping[str, float]:
        self.calls.append((name, number))
        num_tokens = 10 + number  # pieces differ: a round's rate is that of its sums
        return {"num_tokens": num_tokens, "seconds": num_tokens / rate}

    def runs_of(self, name: str) -> list[int]:
        return [number for called, number in self.calls if called == name]


def test_every_case_warms_up_and_then_does_the_same_pieces() -> None:
    course = Course(a=100, b=99)
    race(course.cases, RaceRules(num_rounds=2, num_pieces=3))
    assert course.runs_of("a") == course.runs_of("b") == [-1, 0, 1, 2, 3, 4, 5]


def test_within_a_round_all_do_a_piece_before_any_does_the_next_and_none_is_always_first() -> None:
    course = Course(a=100, b=99, c=98)
    race(course.cases, RaceRules(num_rounds=2, num_pieces=6))
    turns = [course.calls[i : i + 3] for i in range(3, len(course.calls), 3)]
    for index, turn in enumerate(turns):
        assert sorted(turn) == [("a", index), ("b", index), ("c", index)]
    assert {turn[0][0] for turn in turns} == {"a", "b", "c"}


def test_a_round_is_the_sum_of_its_pieces() -> None:
    samples = race(Course(a=64).cases, RaceRules(num_rounds=1, num_pieces=2))
    assert samples["a"] == [{"num_tokens": 21, "seconds": 21 / 64, "tokens_s": 64}]


def test_who_is_far_behind_leaves_after_a_third_unless_it_is_to_stay() -> None:
    course = Course(fast=100, near=95, slow=50, kept=40)
    samples = race(course.cases, RaceRules(num_rounds=6, num_pieces=1, stays=("kept",)))
    assert {name: len(own) for name, own in samples.items()} == {
        "fast": 6, "near": 6, "slow": 2, "kept": 6,
    }  # fmt: skip


def test_a_rate_over_rounds_is_that_of_their_sums() -> None:
    rounds = [{"num_tokens": 10, "seconds": 1.0}, {"num_tokens": 10, "seconds": 3.0}]
    assert rate(rounds) == 5.0


def test_ratios_are_paired_by_round() -> None:
    ours, theirs = [{"x": 2.0}, {"x": 30.0}], [{"x": 1.0}, {"x": 10.0}]
    assert paired(ours, theirs, "x") == [2.0, 3.0]


def test_the_spread_of_a_figure_narrows_with_the_number_of_rounds() -> None:
    few, many = [0.9, 1.0, 1.1], [0.9, 1.0, 1.1] * 20
    (low, high), (lower, higher) = spread(many, mean), spread(few, mean)
    assert lower < low < 1.0 < high < higher
    assert spread([1.0, 1.0], mean) == (1.0, 1.0)
