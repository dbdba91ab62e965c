"""Whole forwards of the CPU kernels against the eager forwards of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.models.diffusion_lm import ContextKind, DiffusionConfig
from engine.models.packing import Span
from tests.engine.kernel_models import (
    DTYPES,
    MAKERS,
    MASK,
    VOCAB,
    Text,
    eager,
    load_runner,
    make_texts,
    read,
    save_kind,
)

pytestmark = pytest.mark.usefixtures("all_helpers")

PLAN = [
    [(0, 100)],
    [(1, 7), (0, 41)],  # two prompts at once
    [(0, 1), (1, 9), (2, 3)],  # a decode row, rows to be verified, a new prompt
    [(0, 1), (2, 8), (1, 1)],
    [(1, 16), (0, 157)],  # beyond the 256 positions that are rotated at first
    [(0, 8), (1, 1), (2, 1)],
]
LENGTHS = [308, 34, 12]
DIFFUSION = {
    "bidirectional": DiffusionConfig(MASK, False, ContextKind.BIDIRECTIONAL),
    "block-causal": DiffusionConfig(MASK, False, ContextKind.BLOCK_CAUSAL, block_length=8),
    "causal": DiffusionConfig(MASK, True, ContextKind.CAUSAL),
}


def close(logits: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.1, "the test proves nothing"
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", MAKERS)
def test_texts_read_in_pieces_beside_each_other_have_the_logits_of_transformers(
    kind: str, dtype: str, tmp_path: Path
) -> None:
    path = save_kind(tmp_path, kind, dtype)
    page_size = 16 if dtype == "float32" else 32
    texts = make_texts(LENGTHS, page_size)
    runner = load_runner(path, page_size=page_size, num_threads=1)
    for text, logits in zip(texts, read(runner, texts, PLAN), strict=True):
        assert logits.shape == (len(text.token_ids), VOCAB)
        close(logits, eager(path, text.token_ids))


def test_only_the_rows_asked_for_get_logits_in_the_order_asked_for(tmp_path: Path) -> None:
    path, [text] = save_kind(tmp_path), make_texts([20])
    runner = load_runner(path, num_threads=2)
    span, expected = text.span(0, 20), eager(path, text.token_ids)
    close(runner.verify([span], [9, 2, 9]), expected[[9, 2, 9]])
    assert runner.verify([span], []).shape == (0, VOCAB)
    spans = [text.span(0, 0), text.span(0, 5), text.span(5, 5), text.span(5, 20)]
    close(runner.verify(spans, [19]), expected[[19]])  # though some spans have no rows


def test_what_a_page_held_before_is_not_seen(tmp_path: Path) -> None:
    path, [text, other] = save_kind(tmp_path), make_texts([40, 40])
    runner = load_runner(path, num_threads=1)
    before = Text(other.token_ids, text.page_ids)
    runner.verify([before.span(0, 40)], [])
    expected = eager(path, text.token_ids)
    close(runner.verify([text.span(0, 21)], list(range(21))), expected[:21])
    close(runner.verify([text.span(21, 40)], list(range(19))), expected[21:])


def test_rows_without_a_page_are_refused_before_they_reach_anothers(tmp_path: Path) -> None:
    runner = load_runner(save_kind(tmp_path), num_threads=1)
    with pytest.raises(AssertionError, match="behind its pages"):
        runner.verify([Span([1] * 17, 0, [1]), Span([1], 0, [2])], [0])


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
@pytest.mark.parametrize("name", DIFFUSION)
def test_a_diffusion_models_rows_see_what_they_were_trained_to(
    name: str, kind: str, num_threads: int, tmp_path: Path
) -> None:
    """Pieces of one text run in one forward, and see each other there, also those before them."""
    path, [text] = save_kind(tmp_path, kind), make_texts([72])
    runner = load_runner(path, diffusion=DIFFUSION[name], num_threads=num_threads)
    length, split = 72, 45
    match name:
        case "bidirectional":  # all at once, and then the middle again
            spans = [text.span(0, split, length), text.span(split, length, length)]
            last = text.span(20, split, length)
        case "block-causal":
            spans = [text.span(i, i + 8, i + 8) for i in range(0, 64, 8)]
            last = text.span(64, 72, 72)
        case _:
            spans = [text.span(0, split), text.span(split, length, length)]
            last = text.span(split, length, length)
    visible = DIFFUSION[name].visible(length, split)
    expected = eager(path, text.token_ids, visible)
    expected[:, MASK] = -torch.inf
    num_rows = sum(len(span.token_ids) for span in spans)
    found = runner.denoise(spans, list(range(num_rows)))
    finite = list(range(MASK))
    close(found[:, finite], expected[:num_rows, finite])
    again = runner.denoise([last], list(range(len(last.token_ids))))
    close(again[:, finite], expected[last.start : last.end, finite])
    assert torch.equal(again[:, MASK], expected[last.start : last.end, MASK])
