"""A self-test at load: packed, paged logits must equal the model's own eager logits."""

from __future__ import annotations

import torch

from engine.models.causal_lm import UnsupportedModelError
from engine.models.model_runner import ModelRunner
from engine.models.packing import Span

_NUM_TOKENS = 24
_SPLIT = 17  # the second chunk reads what the first has left in the pages


@torch.inference_mode()
def check_against_eager(runner: ModelRunner) -> None:
    """Run random tokens both ways; raise `UnsupportedModelError` where the logits differ.

    Catches what paged attention cannot express: recurrent layers, ALiBi, attention sinks, soft
    caps. Uses leading pages, so it must run before any request does.
    """
    verifier = runner.verifier
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(verifier.vocab_size, (_NUM_TOKENS,), generator=generator)
    ids = token_ids.tolist()
    pages = list(range(1, -(-_NUM_TOKENS // runner.page_size) + 1))
    first = runner.verify([Span(ids[:_SPLIT], 0, pages)], list(range(_SPLIT)))
    rest = runner.verify([Span(ids[_SPLIT:], _SPLIT, pages)], list(range(_NUM_TOKENS - _SPLIT)))
    packed = torch.cat((first, rest)).float()
    expected = verifier.eager_logits(token_ids[None].to(runner.device))[0].float()
    error = (packed - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
    limit = 1e-3 if verifier.dtype is torch.float32 else 6e-2
    if not bool(error <= limit):
        kind = verifier.model.config.model_type  # type: ignore[union-attr]
        raise UnsupportedModelError(
            f"{kind} does not run on paged attention: its logits differ by {float(error):.2e} "
            f"of their largest (allowed {limit:.0e}), so its output would be wrong"
        )
