"""What a draft costs beside a verifier forward: parameters and milliseconds, as the engine runs."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.models.attention_choice import AttentionNeed, choose_attention
from engine.models.loader import check_pair, load_pair
from engine.models.model_runner import ModelRunner
from engine.models.packing import Span
from engine.models.self_test import check_against_eager
from engine.training.drafts import Anchors, EngineDraws, pick_drafts

CONTEXT = 128  # tokens read before
PAGE_SIZE = 16
TIMES = 30


@dataclass(frozen=True)
class DraftCost:
    """Of one sequence alone; the times are the best of some, output heads included."""

    verifier_parameters: int
    drafter_parameters: int
    head_parameters: int
    """Of the verifier's output head, which the drafter borrows: a draft reads them too."""
    verify_ms: float
    """One row, as plain decoding runs it."""
    verify_block_ms: float
    """A whole block: the anchor and all drafts."""
    draft_ms: float
    """A whole block, and its tokens picked at temperature 0."""
    verify_head_ms: float
    draft_head_ms: float

    @property
    def draft_share(self) -> float:
        """A draft's time in verifier forwards of one row."""
        return self.draft_ms / self.verify_ms


@torch.inference_mode()
def measure_cost(
    verifier_path: Path, drafter_path: Path, dtype: torch.dtype, device: torch.device
) -> DraftCost:
    """Load the pair as `serve` does, fused layers and all, and time its forwards."""
    runner = _load_runner(verifier_path, drafter_path, dtype, device)
    verifier, drafter, size = runner.verifier, runner.drafter, runner.block_size
    assert drafter is not None
    pages = list(range(1, runner.num_pages))
    ids = torch.arange(CONTEXT + size) % verifier.vocab_size
    runner.verify([Span(ids[:CONTEXT].tolist(), 0, pages)], [0])
    rows = ids[CONTEXT:].tolist()
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    anchors, draws = Anchors(zero, zero, zero + rows[0]), EngineDraws([0], 0.0, device)
    markov = None if drafter.markov is None else drafter.markov.bias
    hidden = torch.randn(size, verifier.hidden_size, device=device, dtype=dtype)

    def draft() -> torch.Tensor:
        logits = runner.draft([Span(rows, CONTEXT, pages)], [size - 1])
        return pick_drafts(logits[None], anchors, draws, markov)

    one, whole = Span(rows[:1], CONTEXT, pages), Span(rows, CONTEXT, pages)
    return DraftCost(
        verifier_parameters=verifier.num_parameters,
        drafter_parameters=sum(p.numel() for p in drafter.parameters()),
        head_parameters=verifier.vocab_size * verifier.hidden_size,
        verify_ms=_best_ms(lambda: runner.verify([one], [0])),
        verify_block_ms=_best_ms(lambda: runner.verify([whole], list(range(size)))),
        draft_ms=_best_ms(draft),
        verify_head_ms=_best_ms(lambda: verifier.logits(hidden[:1])),
        draft_head_ms=_best_ms(lambda: verifier.logits(hidden[1:])),
    )


def _load_runner(
    verifier_path: Path, drafter_path: Path, dtype: torch.dtype, device: torch.device
) -> ModelRunner:
    verifier, drafter = load_pair(str(verifier_path), str(drafter_path), dtype, device)
    assert drafter is not None
    check_pair(verifier, drafter, num_tokens=0)
    need = AttentionNeed(device, dtype, [verifier.kv_shape], PAGE_SIZE)
    runner = ModelRunner(
        verifier,
        drafter,
        num_pages=2 + (CONTEXT + drafter.config.block_size) // PAGE_SIZE,
        page_size=PAGE_SIZE,
        backend=choose_attention(need).backend,
    )
    again = check_against_eager(runner)
    if device.type == "cpu":
        runner.fuse_layers()
        runner.use_kernels(torch.get_num_threads())
        for check in again:
            check()
    return runner


def _best_ms(forward: Callable[[], torch.Tensor]) -> float:
    best = float("inf")
    for _ in range(TIMES):
        started = time.perf_counter()
        forward().max().item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return best * 1e3
