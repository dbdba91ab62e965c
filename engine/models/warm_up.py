"""What an engine prepares before it serves: weights in 8 bits, compiled forwards."""

from __future__ import annotations

import logging
import time

import torch
from torch import Tensor

from engine.models.checkpoint import UnsupportedModelError
from engine.models.compiled import CUDA_BUCKETS, num_graphs
from engine.models.int8 import quantize_weights
from engine.models.loader import Models
from engine.models.model_runner import ModelRunner
from engine.models.packing import Span

logger = logging.getLogger("dfastllm.engine")

_NUM_PROBED = 64
_CUDA_TIMES = 3  # CUDA graphs are warmed up in the first run of a size, and recorded in the second


def quantize(runner: ModelRunner, models: Models) -> None:
    """Put the models' weights in 8 bits, and say what that does to their logits.

    Uses leading pages, so it must run before any request does.
    """
    before = _probe(runner)
    num_matrices = sum(quantize_weights(module) for module in models.modules.values())
    for name, exact in before.items():
        rounded = _probe(runner)[name]
        finite = exact.isfinite()
        error = (rounded - exact)[finite].abs()
        logger.info(
            "8-bit weights: logits of the %s differ by %.1f %% of their largest at most, %.2f %% "
            "in the mean; the most probable token is the same in %d of %d rows",
            name,
            100 * float(error.max() / exact[finite].abs().max()),
            100 * float(error.mean() / exact[finite].abs().max()),
            int((rounded.argmax(-1) == exact.argmax(-1)).sum()),
            len(exact),
        )
    logger.info("8-bit weights: %d matrices", num_matrices)


@torch.inference_mode()
def _probe(runner: ModelRunner) -> dict[str, Tensor]:
    """Logits of random tokens [N, V], by model."""
    num_tokens = min(_NUM_PROBED, (runner.num_pages - 1) * runner.page_size)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(runner.vocab_size, (num_tokens,), generator=generator).tolist()
    spans = [Span(ids, 0, list(range(1, -(-num_tokens // runner.page_size) + 1)))]
    rows = list(range(num_tokens))
    found = {"verifier": runner.verify(spans, rows)} if runner.has_verifier else {}
    if runner.diffusion is not None:
        found["diffusion model"] = runner.denoise(spans, rows)
    return {name: logits.float() for name, logits in found.items()}


def compile_forwards(runner: ModelRunner, max_batch_size: int) -> None:
    """Compile every model's forward, and run each size that has a graph of its own.

    Raises UnsupportedModelError for a model whose forward is not one graph (some experts' are not).
    """
    started, known = time.perf_counter(), num_graphs()
    runner.compile()
    try:
        _run_sizes(runner, max_batch_size)
    # What dynamo, symbols and inductor raise has nothing narrower in common.
    except RuntimeError as error:
        line = str(error).strip().splitlines()[0]
        raise UnsupportedModelError(f"compile is on, but cannot be done: {line}") from error
    runner.counts.reset()
    seconds = time.perf_counter() - started
    logger.info("compiled %d graphs in %.0f s", num_graphs() - known, seconds)


def _run_sizes(runner: ModelRunner, max_batch_size: int) -> None:
    on_cuda = runner.device.type == "cuda"
    # Five rows and three logits: sizes that differ, or a graph would take them for one symbol.
    sizes = [(n, n) for n in CUDA_BUCKETS] if on_cuda else [(5, 3), (1, 1)]
    for _ in range(_CUDA_TIMES if on_cuda else 1):
        for num_rows, num_logits in sizes:
            _run_once(runner, num_rows, num_logits)
        if runner.drafter is not None:
            for num_blocks in range(1, max_batch_size + 1) if on_cuda else (3, 1):
                block = Span([0] * runner.block_size, 1, [0])
                runner.draft([block] * num_blocks, [1] * num_blocks)


def _run_once(runner: ModelRunner, num_rows: int, num_logits: int) -> None:
    """Rows of as many sequences, all on the scratch page."""
    spans, rows = [Span([0], 0, [0])] * num_rows, list(range(num_logits))
    if runner.has_verifier:
        runner.verify(spans, rows)
    if runner.diffusion is not None:
        runner.denoise(spans, rows)
