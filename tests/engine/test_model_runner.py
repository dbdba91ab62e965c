"""Packed and paged forwards against the models' own eager forwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from engine.models.attention import sdpa_backend
from engine.models.loader import load_pair
from engine.models.model_runner import ModelRunner
from engine.models.packing import Span
from tests.engine.tiny_models import VOCAB_SIZE, save_pair, tiny_drafter, tiny_llama, tiny_qwen3

CPU = torch.device("cpu")


@pytest.fixture
def runner(tmp_path: Path) -> ModelRunner:
    verifier_path, drafter_path = save_pair(tmp_path, tiny_qwen3(), tiny_drafter())
    verifier, drafter = load_pair(str(verifier_path), str(drafter_path), torch.float32, CPU)
    return ModelRunner(verifier, drafter, num_pages=64, page_size=4, backend=sdpa_backend)


def tokens(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB_SIZE - 1, (count,), generator=generator).tolist()


def eager(runner: ModelRunner, token_ids: list[int]) -> torch.Tensor:
    return runner.verifier.eager_logits(torch.tensor([token_ids]))[0]


def test_a_ragged_batch_of_prefill_verify_and_decode_rows_equals_eager_forwards(
    runner: ModelRunner,
) -> None:
    long, middle, short = tokens(50, 1), tokens(11, 2), tokens(6, 3)
    pages = {0: list(range(1, 15)), 1: [20, 16, 18], 2: [30, 31]}
    runner.verify([Span(middle[:8], 0, pages[1]), Span(short[:5], 0, pages[2])], [])
    spans = [
        Span(middle[8:], 8, pages[1]),  # verify rows
        Span(long, 0, pages[0]),  # a prompt
        Span(short[5:], 5, pages[2]),  # a decode row
    ]
    logits = runner.verify(spans, list(range(3 + 50 + 1)))
    torch.testing.assert_close(logits[:3], eager(runner, middle)[8:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits[3:53], eager(runner, long), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits[53:], eager(runner, short)[5:], atol=1e-5, rtol=1e-4)


def test_only_the_rows_asked_for_get_logits(runner: ModelRunner) -> None:
    ids = tokens(10, 4)
    logits = runner.verify([Span(ids, 0, [1, 2, 3])], [9, 2])
    torch.testing.assert_close(logits, eager(runner, ids)[[9, 2]], atol=1e-5, rtol=1e-4)


def test_a_sliding_window_is_honoured(tmp_path: Path) -> None:
    model = tiny_qwen3(
        sliding_window=5, use_sliding_window=True, layer_types=["sliding_attention"] * 3
    )
    path, _ = save_pair(tmp_path, model, tiny_drafter())
    verifier, _ = load_pair(str(path), None, torch.float32, CPU)
    runner = ModelRunner(verifier, None, num_pages=64, page_size=4, backend=sdpa_backend)
    ids = tokens(40, 5)
    first = runner.verify([Span(ids[:30], 0, list(range(1, 12)))], list(range(30)))
    rest = runner.verify([Span(ids[30:], 30, list(range(1, 12)))], list(range(10)))
    expected = eager(runner, ids)
    torch.testing.assert_close(torch.cat((first, rest)), expected, atol=1e-5, rtol=1e-4)


def test_llama_runs_on_the_same_path(tmp_path: Path) -> None:
    path, _ = save_pair(tmp_path, tiny_llama(), tiny_drafter())
    verifier, _ = load_pair(str(path), None, torch.float32, CPU)
    runner = ModelRunner(verifier, None, num_pages=64, page_size=4, backend=sdpa_backend)
    ids = tokens(20, 6)
    logits = runner.verify([Span(ids, 0, [1, 2, 3, 4, 5])], list(range(20)))
    torch.testing.assert_close(logits, eager(runner, ids), atol=1e-5, rtol=1e-4)


def test_a_batch_of_drafts_from_cached_context_equals_one_dense_computation(
    runner: ModelRunner,
) -> None:
    contexts = [tokens(13, 7), tokens(5, 8)]
    pages = [[3, 9, 4, 6], [12, 11]]
    runner.verify([Span(ids, 0, p) for ids, p in zip(contexts, pages, strict=True)], [])
    mask = VOCAB_SIZE - 1
    blocks = [
        Span([100 + i, mask, mask, mask], len(ids), p)
        for i, (ids, p) in enumerate(zip(contexts, pages, strict=True))
    ]
    logits = runner.draft(blocks, [3, 2])
    expected = [dense_draft(runner, ids, 100 + i) for i, ids in enumerate(contexts)]
    torch.testing.assert_close(logits[:3], expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits[3:], expected[1][:2], atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def dense_draft(runner: ModelRunner, context: list[int], anchor: int) -> torch.Tensor:
    """The same block without pages: hidden states from transformers, one attention matrix."""
    drafter, verifier = runner.drafter, runner.verifier
    assert drafter is not None
    model = verifier.model
    model.set_attn_implementation("eager")
    states = model(input_ids=torch.tensor([context]), output_hidden_states=True).hidden_states
    taps = torch.cat([states[i + 1][0] for i in drafter.config.target_layer_ids], dim=-1)
    features = drafter.project_context(taps)
    block = torch.tensor([anchor, *[VOCAB_SIZE - 1] * 3])
    positions = torch.arange(len(context), len(context) + 4)

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        ck, cv = drafter.context_kv(layer, features, torch.arange(len(context)))
        keys, values = torch.cat((ck, k)), torch.cat((cv, v))
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1), enable_gqa=True
        )
        return out.transpose(0, 1)

    hidden = drafter(verifier.embed(block), positions, attend)
    return verifier.logits(hidden[1:])
