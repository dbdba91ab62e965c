"""What forwards cost on this machine, timed at start: the planner's first estimates.

The first runs of a size find the caches full of others' weights, and a machine that was idle slow.
So large sizes come first, small ones are run more often, and a drafter's forwards are timed as a
step has them, in turn with the verifier's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import NamedTuple

from torch import Tensor

from engine.models.model_runner import ModelRunner
from engine.models.packing import Span

Points = list[tuple[int, float]]
"""(size, seconds), sizes ascending."""
Model = Callable[[list[Span], list[int]], Tensor]
Forward = Callable[[], Tensor]

_ROWS = (128, 64, 16, 4, 1)
_BATCHES = (1, 2, 4, 8, 16)
_LEAST_BATCHES, _LONG_S = 2, 0.2
"""Fewer batches are timed where they take long."""
_WIDTH = 8
"""Rows of a drafted sequence, where no drafter's blocks say it."""
_LEAST_RUNS, _MOST_RUNS, _LEAST_S = 3, 16, 5e-3
"""A forward is run until it was run so often and for so long."""


class BatchCost(NamedTuple):
    """What the verifier takes for sequences that have a few rows each."""

    num_sequences: int
    num_rows: int
    seconds: float


class BatchCosts(NamedTuple):
    """Forwards of whole batches; none of a model that is not there."""

    verifies: list[BatchCost]
    drafts: Points
    """By blocks."""


def verify_costs(runner: ModelRunner) -> Points:
    """Seconds of a verifier forward by rows, four to a sequence; nothing without a verifier."""
    return _by_rows(runner, runner.verify) if runner.has_verifier else []


def denoise_costs(runner: ModelRunner) -> Points:
    """Seconds of a forward of the diffusion model by rows; nothing without one."""
    return [] if runner.diffusion is None else _by_rows(runner, runner.denoise)


def batch_costs(runner: ModelRunner) -> BatchCosts:
    """Seconds by sequences: of a draft and of judging it, of half as many rows, and of one each."""
    found = BatchCosts([], [])
    started = time.perf_counter()
    for number, count in enumerate(_BATCHES):
        if number >= _LEAST_BATCHES and time.perf_counter() - started > _LONG_S:
            break
        _time_batch(runner, count, found)
    sizes = [(one.num_sequences, one.num_rows) for one in found.verifies]
    seconds = _no_dearer_than_larger(sizes, [one.seconds for one in found.verifies])
    verifies = [BatchCost(*size, s) for size, s in zip(sizes, seconds, strict=True)]
    return BatchCosts(verifies, _points(found.drafts))


def _time_batch(runner: ModelRunner, count: int, found: BatchCosts) -> None:
    width = runner.block_size or _WIDTH
    widths = (width, max(width // 2, 2), 1) if runner.has_verifier else ()
    verifies = [_forward(runner.verify, rows, count, runner.page_size) for rows in widths]
    drafts = [] if runner.drafter is None else [_draft(runner, count)]
    drafted = _best([*drafts, *verifies[:1]])
    if drafts:
        found.drafts.append((count, drafted.pop(0)))
    seconds = [*drafted, *(_best([forward])[0] for forward in verifies[1:])]
    found.verifies.extend(
        BatchCost(count, count * rows, taken) for rows, taken in zip(widths, seconds, strict=True)
    )


def _by_rows(runner: ModelRunner, model: Model) -> Points:
    """Four rows to a sequence."""
    found = []
    for num_rows in _ROWS:
        width = min(num_rows, 4)
        forward = _forward(model, width, num_rows // width, runner.page_size)
        found.append((num_rows, _best([forward])[0]))
    return _points(found[::-1])


def _points(timed: Points) -> Points:
    sizes = [size for size, _ in timed]
    seconds = _no_dearer_than_larger([(size, size) for size in sizes], [s for _, s in timed])
    return list(zip(sizes, seconds, strict=True))


def _no_dearer_than_larger(sizes: Seq[tuple[int, int]], seconds: Seq[float]) -> list[float]:
    """What disturbs a run makes it longer, so a larger one that took less time is to be believed.

    By sequences and rows; larger is what has as many of both at least.
    """
    return [
        min(
            other_s
            for (others, other_rows), other_s in zip(sizes, seconds, strict=True)
            if others >= count and other_rows >= rows
        )
        for count, rows in sizes
    ]


def _forward(model: Model, width: int, count: int, page_size: int) -> Forward:
    """Of `count` sequences with `width` rows each, all on the scratch page."""
    spans = [Span([0] * width, 0, [0] * -(-width // page_size))] * count
    return lambda: model(spans, list(range(count * width)))


def _draft(runner: ModelRunner, num_blocks: int) -> Forward:
    size = runner.block_size
    blocks = [Span([0] * size, 1, [0])] * num_blocks
    return lambda: runner.draft_as_served(blocks, [size - 1] * num_blocks)


def _best(forwards: Seq[Forward]) -> list[float]:
    """The least seconds of each, where they are run in turn."""
    best = [float("inf")] * len(forwards)
    started = now = time.perf_counter()
    num_runs = 0
    while num_runs < _LEAST_RUNS or (num_runs < _MOST_RUNS and now - started < _LEAST_S):
        num_runs += 1
        for index, forward in enumerate(forwards):
            forward().max().item()  # waits for the device
            ended = time.perf_counter()
            best[index], now = min(best[index], ended - now), ended
    return best
