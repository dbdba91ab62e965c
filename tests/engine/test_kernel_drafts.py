"""The drafter through the CPU kernels against the same drafter through torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.decoding.sampler import scaled_noise
from engine.decoding.sampling_table import SamplingTable
from engine.models.cpu.draws import KernelDraws
from engine.models.model_runner import ModelRunner
from engine.models.packing import Span
from engine.models.pick import Pick
from engine.request.sampling_params import SamplingParams
from tests.engine.kernel_models import (
    DTYPES,
    MASK,
    VOCAB,
    Plan,
    Text,
    load_runner,
    make_texts,
    read,
    save_draft_kind,
    save_kind,
)

pytestmark = pytest.mark.usefixtures("all_helpers")

LENGTHS = [300, 70, 33]
MIXED: Plan = [[(0, 200), (1, 16)], [(1, 8), (0, 1), (2, 5)], [(0, 99), (2, 28), (1, 46)]]
ANCHORS = [
    (2, 0),
    (1, 1),
    (0, 15),
    (1, 16),
    (2, 17),
    (0, 250),
    (0, 260),
    (1, 63),
    (2, 31),
    (0, 290),
]


def block(text: Text, start: int, width: int) -> Span:
    return Span([text.token_ids[start], *[MASK] * (width - 1)], start, text.page_ids)


def pair(
    folder: Path,
    *,
    dtype: str = "float32",
    num_threads: int = 1,
    page_size: int = 16,
    **changes: Any,
) -> tuple[ModelRunner, ModelRunner]:
    """One verifier and drafter through the kernels, and through torch."""
    path = save_kind(folder / "verifier", "qwen3", dtype)
    drafter = save_draft_kind(folder / "drafter", dtype, **changes)
    kernels = load_runner(path, drafter, num_threads=num_threads, page_size=page_size)
    return kernels, load_runner(path, drafter, page_size=page_size)


def same_drafts(runners: tuple[ModelRunner, ...], blocks: list[Span], lengths: list[int]) -> None:
    found, expected = (runner.draft(blocks, lengths) for runner in runners)
    assert found.shape == (sum(lengths), VOCAB)
    assert expected.std() > 0.1, "the test proves nothing"
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [8, 16, 17, 40])
def test_drafts_from_any_anchor_are_those_of_torch(
    block_size: int, dtype: str, tmp_path: Path
) -> None:
    """After what a batch of prompts, decode rows and rows to be verified has left as context."""
    page_size = 32 if block_size == 17 else 16
    texts = make_texts(LENGTHS, page_size)
    runners = pair(tmp_path, dtype=dtype, block_size=block_size, page_size=page_size)
    for runner in runners:
        read(runner, texts, MIXED)
    blocks = [block(texts[text], start, block_size) for text, start in ANCHORS]
    for one in blocks:
        same_drafts(runners, [one], [block_size - 1])
    same_drafts(runners, blocks[:3], [1, block_size - 1, 0])
    same_drafts(runners, blocks * 7, [1 + i % (block_size - 1) for i in range(70)])


@pytest.mark.parametrize(
    "changes",
    [
        {"num_layers": 1, "target_layer_ids": (1,)},
        {"num_layers": 4, "target_layer_ids": (0, 1, 2)},
        {"num_heads": 6, "num_kv_heads": 3, "head_dim": 64, "intermediate_size": 33},
        {"input_embedding_scale": 2.0, "output_multiplier": 0.5, "final_logit_softcapping": 1.5},
        {"rope_scaling": (("factor", 4.0), ("rope_type", "linear"))},
    ],
    ids=str,
)
def test_drafters_of_other_shapes_draft_as_in_torch(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    runners, texts = pair(tmp_path, num_threads=2, **changes), make_texts(LENGTHS)
    for runner in runners:
        read(runner, texts, MIXED)
    blocks = [block(texts[text], start, 8) for text, start in ANCHORS]
    same_drafts(runners, blocks, [7] * len(blocks))


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("is_noisy", [False, True])
def test_drafts_that_are_drawn_at_once_are_those_drawn_one_after_the_other(
    *, is_noisy: bool, num_threads: int, tmp_path: Path
) -> None:
    """By torch, of the same logits: each token in the light of the one before it."""
    runner, _ = pair(tmp_path, num_threads=num_threads, markov_rank=8)
    texts = make_texts(LENGTHS)
    read(runner, texts, MIXED)
    blocks = [block(texts[text], start, 8) for text, start in ANCHORS] * 7
    lengths = [1 + i % 7 for i in range(len(blocks))]
    temperature = 0.3 if is_noisy else 0.0
    table = SamplingTable.build(
        [(SamplingParams(seed=i, temperature=temperature), 0, 0) for i in range(len(blocks))]
    )
    sequence: Any = None  # of which drawing asks nothing
    picks = [Pick(sequence, 5, length) for length in lengths]
    index = torch.arange(len(blocks)).repeat_interleave(torch.tensor(lengths))
    positions = torch.tensor([5 + k for length in lengths for k in range(length)])
    noise = scaled_noise(table, index, positions, VOCAB)
    kernels = KernelDraws()
    draws = kernels.plan(kernels.settings(table), picks, VOCAB)
    logits, drawn = runner.draft_drawn(blocks, lengths, draws)
    assert torch.equal(logits, runner.draft(blocks, lengths))
    scores = logits + noise if is_noisy else logits
    anchors = [one.token_ids[0] for one in blocks]
    assert runner.draw_chained(scores, lengths, anchors) == drawn
    num_turned = 0
    for own, previous, found in zip(scores.split(lengths), anchors, drawn, strict=True):
        for row, token_id in zip(own, found, strict=True):
            biased = row + runner.next_token_bias(torch.tensor([previous]))[0]
            assert biased[token_id] >= biased.max() - 1e-4
            num_turned += token_id != int(row.argmax())
            previous = token_id
    assert num_turned > 20, "the test proves nothing"


def test_a_draft_does_not_see_what_was_refused_before(tmp_path: Path) -> None:
    """Rows of refused drafts stay in the pages until they are written over."""
    runner, torch_runner = pair(tmp_path)
    [text] = make_texts([60])
    wrong = Span([7] * 12, 20, text.page_ids)
    runner.verify([text.span(0, 20)], [])
    fresh = runner.draft([block(text, 20, 8)], [7])
    runner.verify([wrong], [])
    assert torch.equal(runner.draft([block(text, 20, 8)], [7]), fresh)
    runner.verify([text.span(20, 23)], [])
    torch_runner.verify([text.span(0, 23)], [])
    same_drafts((runner, torch_runner), [block(text, 23, 8)], [7])
