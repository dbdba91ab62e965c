"""A self-test at load: packed, paged logits must equal the model's own eager logits."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from engine.models.causal_lm import CausalLM, UnsupportedModelError
from engine.models.model_runner import ModelRunner
from engine.models.packing import Span

_NUM_TOKENS = 24
PackedForward = Callable[[Seq[Span], list[int]], Tensor]


@torch.inference_mode()
def check_against_eager(runner: ModelRunner, *, fuse: bool = False) -> None:
    """Run random tokens both ways; raise `UnsupportedModelError` where the logits differ.

    Catches what paged attention cannot express: recurrent layers, ALiBi, attention sinks, soft
    caps. With `fuse` the models' layers are then fused, if they can be, and checked again.
    Uses leading pages, so it must run before any request does.
    """
    if runner.has_verifier:
        _check(runner, runner.verifier, runner.verify, fuse=fuse)
    if runner.diffusion is not None:
        _check(runner, runner.diffusion.backbone, runner.denoise, fuse=fuse)


def _check(runner: ModelRunner, model: CausalLM, forward: PackedForward, *, fuse: bool) -> None:
    num_tokens = min(_NUM_TOKENS, model.max_positions, (runner.num_pages - 1) * runner.page_size)
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(model.vocab_size, (num_tokens,), generator=generator)
    ids, size = token_ids.tolist(), runner.page_size
    try:
        packed = _packed_logits(forward, ids, size)
        expected = model.eager_logits(token_ids[None].to(runner.device))[0].float()
    # What a model of another kind trips over, which can be nearly anything in its forward.
    except (NotImplementedError, AttributeError, TypeError, RuntimeError) as error:
        message = f"{model.model_type} does not run on paged attention: {error}"
        raise UnsupportedModelError(message) from error
    _compare(packed, expected, model)
    if fuse and model.fuse_layers():
        _compare(_packed_logits(forward, ids, size), expected, model)


def _compare(packed: Tensor, expected: Tensor, model: CausalLM) -> None:
    expected = expected.masked_fill(packed == -torch.inf, -torch.inf)  # the mask token's own
    finite = expected.isfinite()
    packed, expected = packed[finite], expected[finite]
    difference = (packed - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
    limit = 1e-3 if model.dtype is torch.float32 else 6e-2
    if not bool(difference <= limit):
        raise UnsupportedModelError(
            f"{model.model_type} does not run on paged attention: its logits differ "
            f"by {float(difference):.2e} of their largest (allowed {limit:.0e}), "
            "so its output would be wrong"
        )


def _packed_logits(forward: PackedForward, ids: list[int], page_size: int) -> Tensor:
    """In two chunks: the second reads what the first has left in the pages."""
    split = len(ids) * 2 // 3
    pages = list(range(1, -(-len(ids) // page_size) + 1))
    first = forward([Span(ids[:split], 0, pages)], list(range(split)))
    rest = forward([Span(ids[split:], split, pages)], list(range(len(ids) - split)))
    return torch.cat((first, rest)).float()
