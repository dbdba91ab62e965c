"""Table `concurrency` on tiny models: who takes part, and who counts as the best."""

from __future__ import annotations

from pathlib import Path

from benchmarks.concurrency import ConcurrencyBench, best_of
from benchmarks.options import Options
from benchmarks.rounds import Sample
from engine.engine_config import EngineConfig


def rounds_of(*rates: float) -> list[Sample]:
    return [{"num_tokens": rate, "seconds": 1.0} for rate in rates]


def test_ar_each_length_that_the_drafter_knows_and_the_planner_take_part(
    pair: tuple[Path, Path],
) -> None:
    verifier, drafter = map(str, pair)
    config = EngineConfig(model_path=verifier, drafter_path=drafter, attention="sdpa")
    bench = ConcurrencyBench(Options(quick=True), config)
    samples, first = bench.measure(temperature=0.0, at_once=4)
    assert first > 0
    assert list(samples) == ["ar", "fixed 1", "fixed 2", "fixed 3", "planner", "ar again"]
    for own in samples.values():
        assert 512 <= own[0]["num_tokens"] < 512 + 4 * 4, "a round, and a step at most"


def test_the_best_is_the_fastest_of_those_that_the_planner_may_be_compared_with() -> None:
    samples = {
        "ar": rounds_of(10, 10, 10),
        "fixed 1": rounds_of(30),  # left early
        "fixed 2": rounds_of(11, 12, 9),
        "planner": rounds_of(20, 20, 20),
        "ar again": rounds_of(19, 19, 19),
    }
    assert best_of(samples) == "fixed 2"
