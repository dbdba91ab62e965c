"""A self-test at load: packed, paged logits must equal the model's own eager logits."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.models.causal_lm import CausalLM, UnsupportedModelError
from engine.models.model_runner import ModelRunner
from engine.models.packing import Span

_NUM_TOKENS = 24


@torch.inference_mode()
def check_against_eager(runner: ModelRunner, *, fuse: bool = False) -> None:
    """Run random tokens both ways; raise `UnsupportedModelError` where the logits differ.

    Catches what paged attention cannot express: recurrent layers, ALiBi, attention sinks, soft
    caps. With `fuse` the verifier's layers are then fused, if they can be, and checked again.
    Uses leading pages, so it must run before any request does.
    """
    verifier = runner.verifier
    kind = verifier.model_type
    num_tokens = min(_NUM_TOKENS, verifier.max_positions, (runner.num_pages - 1) * runner.page_size)
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(verifier.vocab_size, (num_tokens,), generator=generator)
    try:
        packed = _packed_logits(runner, token_ids.tolist()).float()
        expected = verifier.eager_logits(token_ids[None].to(runner.device))[0].float()
    # What a model of another kind trips over, which can be nearly anything in its forward.
    except (NotImplementedError, AttributeError, TypeError, RuntimeError) as error:
        raise UnsupportedModelError(f"{kind} does not run on paged attention: {error}") from error
    _compare(packed, expected, verifier)
    if fuse and verifier.fuse_layers():
        _compare(_packed_logits(runner, token_ids.tolist()).float(), expected, verifier)


def _compare(packed: Tensor, expected: Tensor, verifier: CausalLM) -> None:
    difference = (packed - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
    limit = 1e-3 if verifier.dtype is torch.float32 else 6e-2
    if not bool(difference <= limit):
        raise UnsupportedModelError(
            f"{verifier.model_type} does not run on paged attention: its logits differ "
            f"by {float(difference):.2e} of their largest (allowed {limit:.0e}), "
            "so its output would be wrong"
        )


def _packed_logits(runner: ModelRunner, ids: list[int]) -> Tensor:
    """In two chunks: the second reads what the first has left in the pages."""
    split = len(ids) * 2 // 3
    pages = list(range(1, -(-len(ids) // runner.page_size) + 1))
    first = runner.verify([Span(ids[:split], 0, pages)], list(range(split)))
    rest = runner.verify([Span(ids[split:], split, pages)], list(range(len(ids) - split)))
    return torch.cat((first, rest))
