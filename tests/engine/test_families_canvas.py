"""DiffusionGemma: paged reading and denoising against transformers' own cache and masks."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    DiffusionGemmaGenerationConfig,
    EntropyBoundSamplerConfig,
)

from engine.decoding.entropy_bound import EntropyBound
from engine.models.attention import sdpa_backend
from engine.models.canvas_lm import CanvasLM, load_canvas_lm
from engine.models.causal_lm import UnsupportedModelError, load_causal_lm
from engine.models.diffusion_lm import load_diffusion_lm
from engine.models.kv_pool import KvPool
from engine.models.model_runner import ModelRunner
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


@torch.inference_mode()
def test_logits_are_those_of_the_rows_that_were_asked_for(folder: Path) -> None:
    """Among texts that are read in the same pack, and canvases that are told of a pass or not."""
    model = load_canvas_lm(folder, dtype=torch.float32, device=CPU)
    runner = ModelRunner(
        None, None, num_pages=33, page_size=PAGE, backend=sdpa_backend, canvas=model
    )
    text, pages = ids(5, 1), ([1, 2, 3, 4], [5, 6, 7, 8], [9, 10])
    told = Span(ids(CANVAS, 3), 5, pages[1], 13, feedback=torch.ones(CANVAS, 32))
    first = [Span(text, 0, pages[0]), Span(ids(CANVAS, 2), 5, pages[0], 13)]
    second = [Span(text, 0, pages[1]), told]
    alone = [runner.denoise(spans, list(range(5, 13))) for spans in (first, second)]
    untold = runner.denoise([replace(told, feedback=None)], list(range(CANVAS)))
    pack_of_all = [*first, Span(ids(4, 4), 0, pages[2]), *second]
    found = runner.denoise(pack_of_all, [6, 12, 22, 24])
    expected = torch.stack([alone[0][1], alone[0][7], alone[1][0], alone[1][2]])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (alone[1] - untold).abs().max() > 0.1
    assert runner.denoise([Span(ids(4, 4), 0, pages[2])], []).shape == (0, 96)


def test_its_rule_is_what_the_generation_config_says_or_what_transformers_takes(
    folder: Path, tmp_path: Path
) -> None:
    said = {"t_min": 0.1, "t_max": 0.9, "stability_threshold": 2, "confidence_threshold": 0.3}
    own = save_canvas(
        tmp_path, max_denoising_steps=7, sampler_config=EntropyBoundSamplerConfig(0.5), **said
    )
    rules = []
    for path in (folder, own):
        rules.append(load_canvas_lm(path, dtype=torch.float32, device=CPU).config.rule)
    (own / "generation_config.json").unlink()
    rules.append(load_canvas_lm(own, dtype=torch.float32, device=CPU).config.rule)
    defaults = DiffusionGemmaGenerationConfig._get_default_generation_params()
    assert rules[0] == rules[2] == EntropyBound()
    assert asdict(rules[0]) == {
        "num_steps": defaults["max_denoising_steps"],
        "entropy_bound": defaults["sampler_config"].entropy_bound,
        **{name: defaults[name] for name in said},
    }
    assert rules[1] == EntropyBound(num_steps=7, entropy_bound=0.5, **said)


def test_it_is_loaded_neither_as_a_model_with_masks_nor_as_a_verifier(folder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="random tokens, not masks"):
        load_diffusion_lm(folder, dtype=torch.float32, device=CPU)
    with pytest.raises(UnsupportedModelError, match="holds no causal LM, but a diffusion LM"):
        load_causal_lm(folder, dtype=torch.float32, device=CPU)
