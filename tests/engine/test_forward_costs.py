"""What is timed at start: the sizes, and that each takes the time of its own forward."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from engine.models.forward_costs import batch_costs, verify_costs
from engine.models.model_runner import ModelRunner
from tests.engine.engines import TinyModels, make_engine


@pytest.fixture
def runner(models: TinyModels) -> ModelRunner:
    return make_engine(models)._runner


def slower(forward: Callable[..., Tensor], seconds_of: Callable[..., float]) -> Any:
    """The forward, taking as long as is said of its arguments at least."""

    def run(*arguments: Any) -> Tensor:
        until = time.perf_counter() + seconds_of(*arguments)
        output = forward(*arguments)
        while time.perf_counter() < until:
            pass
        return output

    return run


def test_batches_are_timed_with_one_row_half_a_block_and_a_block_each(runner: ModelRunner) -> None:
    found = batch_costs(runner)
    size = runner.block_size
    shapes = [(n, n * width) for n in (1, 2, 4, 8, 16) for width in (size, size // 2, 1)]
    assert [one[:2] for one in found.verifies] == shapes
    assert [blocks for blocks, _ in found.drafts] == [1, 2, 4, 8, 16]


def test_fewer_batches_are_timed_where_forwards_are_slow(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.02
    monkeypatch.setattr(runner, "verify", slower(runner.verify, lambda spans, rows: seconds))
    monkeypatch.setattr(runner, "draft", slower(runner.draft, lambda spans, lengths: 2 * seconds))
    found = batch_costs(runner)
    assert [blocks for blocks, _ in found.drafts] == [1, 2]
    assert all(seconds <= one.seconds < 2 * seconds for one in found.verifies)
    assert all(2 * seconds <= taken for _, taken in found.drafts)


def test_a_first_run_of_a_size_that_is_slow_is_not_its_cost(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, int] = {}

    def seconds_of(spans: list[Any], rows: list[int]) -> float:
        seen[len(rows)] = seen.get(len(rows), 0) + 1
        return 0.05 if seen[len(rows)] <= 2 else 0.0

    monkeypatch.setattr(runner, "verify", slower(runner.verify, seconds_of))
    costs = verify_costs(runner)
    assert [rows for rows, _ in costs] == [1, 4, 16, 64, 128]
    assert all(seconds < 0.05 for _, seconds in costs)


def test_a_size_whose_runs_were_all_disturbed_costs_no_more_than_a_larger_one(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds_of(spans: list[Any], rows: list[int]) -> float:
        return 0.05 if len(rows) == 4 else 0.0

    monkeypatch.setattr(runner, "verify", slower(runner.verify, seconds_of))
    assert all(seconds < 0.05 for _, seconds in verify_costs(runner))
    assert all(one.seconds < 0.05 for one in batch_costs(runner).verifies)
