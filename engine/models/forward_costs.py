"""What forwards cost on this machine, timed at start: the planner's first estimates."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import Tensor

from engine.models.model_runner import ModelRunner
from engine.models.packing import Span

Points = list[tuple[int, float]]
"""(size, seconds), sizes ascending."""

_ROWS = (1, 4, 16, 64, 128)
_BLOCKS = (1, 4, 16)


def verify_costs(runner: ModelRunner) -> Points:
    """Seconds of a verifier forward by rows; nothing without a verifier."""
    if not runner.has_verifier:
        return []
    return [(n, _best_of_five(runner.verify, n, runner.page_size)) for n in _ROWS]


def denoise_costs(runner: ModelRunner) -> Points:
    """Seconds of a forward of the diffusion model by rows; nothing without one."""
    if runner.diffusion is None:
        return []
    return [(n, _best_of_five(runner.denoise, n, runner.page_size)) for n in _ROWS]


def draft_costs(runner: ModelRunner) -> Points:
    """Seconds of a drafter forward by blocks; nothing without a drafter."""
    if runner.drafter is None:
        return []
    size = runner.block_size

    def draft(num_blocks: int) -> Tensor:
        blocks = [Span([0] * size, 1, [0]) for _ in range(num_blocks)]
        return runner.draft(blocks, [size - 1] * num_blocks)

    return [(n, _best_of(5, lambda n=n: draft(n))) for n in _BLOCKS]  # type: ignore[misc]


def _best_of_five(
    forward: Callable[[list[Span], list[int]], Tensor], num_rows: int, page_size: int
) -> float:
    """Over `num_rows` rows, four to a sequence, all on the scratch page."""
    width = min(num_rows, 4)
    pages = [0] * -(-width // page_size)
    spans = [Span([0] * width, 0, pages) for _ in range(num_rows // width)]
    return _best_of(5, lambda: forward(spans, list(range(num_rows))))


def _best_of(times: int, forward: Callable[[], Tensor]) -> float:
    best = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        forward().max().item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return best
