"""DiffusionGemma: paged reading and denoising against transformers' own cache and masks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion

from engine.models.attention import sdpa_backend
from engine.models.canvas_lm import CanvasLM, load_canvas_lm
from engine.models.causal_lm import UnsupportedModelError, load_causal_lm
from engine.models.diffusion_lm import load_diffusion_lm
from engine.models.kv_pool import KvPool
from engine.models.packing import PackedBatch, Span, pack
from tests.engine.tiny_canvas import CANVAS, save_canvas

CPU = torch.device("cpu")
PAGE = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_canvas(tmp_path_factory.mktemp("canvas"))


class Paged:
    """A canvas model with pages, asked about spans."""

    def __init__(self, model: CanvasLM) -> None:
        self.model = model
        self.pool = KvPool(model.kv_shape, 32, PAGE, torch.float32, CPU)

    def read(self, *spans: Span) -> None:
        self.model.read(self._batch(spans), self.pool, sdpa_backend)

    def denoise(self, *spans: Span, conditioning: Tensor | None = None) -> Tensor:
        told = None if conditioning is None else self.model.soften(conditioning)
        return self.model.denoise(self._batch(spans), self.pool, sdpa_backend, told)

    def _batch(self, spans: tuple[Span, ...]) -> PackedBatch:
        return pack(spans, PAGE, CPU)


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(96, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def test_canvases_of_a_batch_get_the_logits_that_transformers_gives_each(folder: Path) -> None:
    theirs = DiffusionGemmaForBlockDiffusion.from_pretrained(folder, attn_implementation="eager")
    paged = Paged(load_canvas_lm(folder, dtype=torch.float32, device=CPU))
    assert paged.model.config.canvas_length == CANVAS
    texts, pages = (ids(13, 1), ids(3, 2)), ([9, 2, 4, 1, 7, 5, 3, 6], [20, 21, 22, 23, 24])
    paged.read(Span(texts[0][:7], 0, pages[0]))
    paged.read(Span(texts[1], 0, pages[1]), Span(texts[0][7:], 7, pages[0]))
    before: Tensor | None = None
    for step in range(3):  # the first pass, and two that are told of the one before
        canvases = [ids(CANVAS, 10 + step), ids(CANVAS, 20 + step)]
        spans = [
            Span(canvas, len(text), page, len(text) + CANVAS)
            for canvas, text, page in zip(canvases, texts, pages, strict=True)
        ]
        found = paged.denoise(*spans, conditioning=before)
        for i, (text, canvas) in enumerate(zip(texts, canvases, strict=True)):
            rows = slice(i * CANVAS, (i + 1) * CANVAS)
            expected = theirs(
                input_ids=torch.tensor([text]),
                decoder_input_ids=torch.tensor([canvas]),
                self_conditioning_logits=None if before is None else before[None, rows],
            ).logits[0]
            torch.testing.assert_close(found[rows], expected, atol=1e-4, rtol=1e-4)
        before = found


@torch.inference_mode()
def test_a_finished_canvas_is_read_as_text_and_the_next_one_sees_it(folder: Path) -> None:
    theirs = DiffusionGemmaForBlockDiffusion.from_pretrained(folder, attn_implementation="eager")
    paged = Paged(load_canvas_lm(folder, dtype=torch.float32, device=CPU))
    text, pages = ids(5, 1), list(range(1, 9))
    paged.read(Span(text, 0, pages))
    finished = paged.denoise(Span(ids(CANVAS, 2), 5, pages, 13)).argmax(-1).tolist()
    paged.read(Span(finished, 5, pages))
    canvas = ids(CANVAS, 3)
    found = paged.denoise(Span(canvas, 13, pages, 21))
    expected = theirs(
        input_ids=torch.tensor([text + finished]), decoder_input_ids=torch.tensor([canvas])
    ).logits[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_it_is_loaded_neither_as_a_model_with_masks_nor_as_a_verifier(folder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="random tokens, not masks"):
        load_diffusion_lm(folder, dtype=torch.float32, device=CPU)
    with pytest.raises(UnsupportedModelError, match="holds no causal LM, but a diffusion LM"):
        load_causal_lm(folder, dtype=torch.float32, device=CPU)
