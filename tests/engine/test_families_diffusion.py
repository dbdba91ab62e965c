"""Published diffusion LMs: packed, paged logits against the families' own equations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from engine.models.attention import Backend, PagedContext, sdpa_backend
from engine.models.causal_lm import UnsupportedModelError, load_causal_lm
from engine.models.diffusion_lm import ContextKind, DiffusionConfig, DiffusionLM, load_diffusion_lm
from engine.models.families import CheckpointKind, checkpoint_kind
from engine.models.model_runner import ModelRunner
from engine.models.packing import Span
from engine.models.self_test import check_against_eager
from tests.engine.tiny_families import DREAM, FAST_DLLM, LLADA, MASK, SDAR, VOCAB, Published

WEIGHTS = Path(__file__).parents[2] / "engine" / "weights"
CPU = torch.device("cpu")
NO_MASK_IN_CONFIG = {"mask_token_id": MASK}  # for a family whose config names none


def load(folder: Path, dtype: torch.dtype = torch.float32) -> DiffusionLM:
    return load_diffusion_lm(folder, dtype=dtype, device=CPU)


def token_ids(length: int = 22) -> Tensor:
    ids = torch.randint(MASK, (length,), generator=torch.Generator().manual_seed(3))
    ids[-5:] = MASK
    return ids


def diffusion_runner(model: DiffusionLM, backend: Backend) -> ModelRunner:
    return ModelRunner(None, None, num_pages=32, page_size=4, backend=backend, diffusion=model)


def both_ways(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool)


def block_causal(length: int, size: int) -> Tensor:
    block = torch.arange(length) // size
    return block[:, None] >= block[None, :]


FAMILIES = {
    "llada": (LLADA, DiffusionConfig(MASK, False, ContextKind.BIDIRECTIONAL)),
    "dream": (DREAM, DiffusionConfig(MASK, True, ContextKind.BIDIRECTIONAL)),
    "sdar": (SDAR, DiffusionConfig(MASK, False, ContextKind.BLOCK_CAUSAL, 4)),
    "fast_dllm": (FAST_DLLM, DiffusionConfig(MASK, True, ContextKind.BLOCK_CAUSAL, 8)),
}


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES.keys())
def family(request: pytest.FixtureRequest) -> tuple[Published, DiffusionConfig]:
    found: tuple[Published, DiffusionConfig] = request.param
    return found


@torch.inference_mode()
def test_a_published_checkpoint_is_read_and_computes_what_it_publishes(
    family: tuple[Published, DiffusionConfig], tmp_path: Path
) -> None:
    published, expected = family
    tensors = published.tensors()
    folder = published.save(tmp_path, tensors, **NO_MASK_IN_CONFIG)
    assert checkpoint_kind(folder) is CheckpointKind.DIFFUSION_LM
    model = load(folder)
    assert model.config == expected
    assert (model.model_type, model.vocab_size) == (published.config["model_type"], VOCAB)
    ids = token_ids()
    size = expected.block_length
    visible = both_ways(len(ids)) if size is None else block_causal(len(ids), size)
    assert torch.equal(expected.visible(len(ids), 17), visible)
    found = model.backbone.eager_logits(ids[None], visible)[0]
    wanted = published.logits(tensors, ids, visible)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_mixture_of_experts_of_sdar_runs_as_its_backbone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {**SDAR.config, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    own = transformers.Qwen3MoeConfig.from_dict({**shape, "model_type": "qwen3_moe"})
    reference = transformers.Qwen3MoeForCausalLM(own).eval()
    reference.save_pretrained(tmp_path)  # whose tensor names are those of JetLM/SDAR-30B-A3B
    config = {**shape, "model_type": "sdar_moe"}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    model = load(tmp_path)
    ids = token_ids()
    visible = block_causal(len(ids), 4)
    reference.set_attn_implementation("eager")
    bias = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    wanted = reference(ids[None], attention_mask=bias[None, None]).logits
    torch.testing.assert_close(model.backbone.eager_logits(ids[None], visible), wanted)


def test_our_own_checkpoint_says_what_it_is_in_its_config() -> None:
    model = load(WEIGHTS / "diffusion")
    assert model.config == DiffusionConfig(3, True, ContextKind.CAUSAL, None)
    assert model.config.kv_is_prefix_function
    seen = model.config.visible(5, 3)
    assert seen[:3, :3].equal(torch.ones(3, 3).tril().bool())
    assert not seen[:3, 3:].any() and seen[3:].all()


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        ({"model_type": "qwen3"}, CheckpointKind.CAUSAL_LM),
        ({"model_type": "qwen3", "diffusion_config": {}}, CheckpointKind.DIFFUSION_LM),
        ({"model_type": "qwen3", "dflash_config": {}}, CheckpointKind.DRAFTER),
        ({"model_type": "muse_glimmer_assistant"}, CheckpointKind.DRAFTER),
        ({"model_type": "diffusion_gemma"}, CheckpointKind.DIFFUSION_LM),
        ({"model_type": "Dream"}, CheckpointKind.DIFFUSION_LM),
    ],
)
def test_a_config_alone_says_what_a_folder_holds(
    raw: dict[str, Any], kind: CheckpointKind, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(raw), "utf-8")
    assert checkpoint_kind(tmp_path) is kind


@pytest.mark.parametrize(
    ("published", "change", "complaint"),
    [
        (LLADA, {"block_type": "sequential"}, "block_type = 'sequential'"),
        (LLADA, {"include_qkv_bias": True}, "include_qkv_bias = True"),
        (LLADA, {"rope": False}, "rope = False"),
        (LLADA, {"d_model": ...}, "has no 'd_model'"),
        (LLADA, {"mask_token_id": VOCAB}, f"mask token {VOCAB} is none of its {VOCAB}"),
        (LLADA, {"n_layers": 3}, r"lacks weights: model\.layers\.2"),
        (LLADA, {"n_layers": 1}, r"has unknown weights: model\.layers\.1"),
        (LLADA, {"mlp_hidden_size": 47}, "cannot load"),
        (DREAM, {"use_sliding_window": True}, "sliding window"),
        (DREAM, {"quantization_config": {"bits": 4}}, "quantised"),
        (FAST_DLLM, {}, "mask token 151665 is none"),
        (SDAR, {"model_type": "sdar2"}, r"model_type sdar2\) holds no diffusion model.*sdar"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused_naming_it(
    published: Published, change: dict[str, object], complaint: str, tmp_path: Path
) -> None:
    folder = published.save(tmp_path, published.tensors(), **change)
    with pytest.raises(UnsupportedModelError, match=complaint):
        load(folder)


def test_a_diffusion_lm_of_a_foreign_kind_is_no_verifier(tmp_path: Path) -> None:
    folder = DREAM.save(tmp_path, DREAM.tensors())
    with pytest.raises(UnsupportedModelError, match=r"Dream\) holds no causal LM, but a diffusion"):
        load_causal_lm(folder, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("named", ["<|mask|>", {"content": "<|mask|>"}])
def test_a_mask_that_the_config_does_not_name_is_that_of_the_tokenizer(
    named: object, tmp_path: Path
) -> None:
    folder = SDAR.save(tmp_path, SDAR.tensors(), mask_token_id=...)
    added = [{"id": 7, "content": "<|end|>"}, {"id": 91, "content": "<|mask|>"}]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"mask_token": named}), "utf-8")
    assert load(folder).config.mask_token_id == 91


def test_a_block_length_that_the_config_does_not_name_is_the_familys(tmp_path: Path) -> None:
    named = SDAR.save(tmp_path / "a", SDAR.tensors(), block_size=16)
    assert load(named).config.block_length == 16
    unnamed = SDAR.save(tmp_path / "b", SDAR.tensors(), block_size=...)
    assert load(unnamed).config.block_length == 4


@torch.inference_mode()
def test_any_chunks_of_pages_give_the_published_logits(
    family: tuple[Published, DiffusionConfig], tmp_path: Path
) -> None:
    """Context read in pieces, then a block that is read again, as its masks become tokens."""
    published, config = family
    tensors = published.tensors()
    model = load(published.save(tmp_path, tensors, **NO_MASK_IN_CONFIG))
    runner = diffusion_runner(model, sdpa_backend)
    ids, pages = token_ids(24), [9, 2, 4, 1, 7, 5]
    size = config.block_length
    if size is None:  # all in one forward, and then its middle again, between what is cached
        pieces = [[(0, 10, 24), (10, 24, 24)], [(6, 15, 24)]]
        visible = both_ways(24)
    else:  # whole blocks of context, and the last block twice
        blocks = [(start, start + size, start + size) for start in range(0, 24, size)]
        pieces = [blocks[:1], blocks[1:], blocks[-1:]]
        visible = block_causal(24, size)
    wanted = published.logits(tensors, ids, visible)
    wanted[:, MASK] = -torch.inf
    for forward in pieces:
        spans = [Span(ids[a:b].tolist(), a, pages, end) for a, b, end in forward]
        rows = [row for a, b, _ in forward for row in range(a, b)]
        found = runner.denoise(spans, list(range(len(rows))))
        torch.testing.assert_close(found, wanted[rows], atol=2e-5, rtol=1e-4)


def blind_to_what_follows(
    q: Tensor, layer: int, context: PagedContext, scale: float, window: int | None
) -> Tensor:
    spans = [replace(span, visible_end=None) for span in context.batch.spans]
    causal = PagedContext(replace(context.batch, spans=spans), context.pool, sdpa_backend)
    return sdpa_backend(q, layer, causal, scale, window)


def test_the_self_test_reads_as_the_family_was_trained_to(
    family: tuple[Published, DiffusionConfig], tmp_path: Path
) -> None:
    published, _ = family
    folder = published.save(tmp_path, published.tensors(), **NO_MASK_IN_CONFIG)
    good = diffusion_runner(load(folder), sdpa_backend)
    (check_again,) = check_against_eager(good)
    good.fuse_layers()
    check_again()
    bad = diffusion_runner(load(folder), blind_to_what_follows)
    with pytest.raises(UnsupportedModelError, match=f"{published.config['model_type']}.*differ"):
        check_against_eager(bad)


def test_the_self_test_reads_our_own_context_and_block() -> None:
    check_against_eager(diffusion_runner(load(WEIGHTS / "diffusion"), sdpa_backend))
    bad = diffusion_runner(load(WEIGHTS / "diffusion"), blind_to_what_follows)
    with pytest.raises(UnsupportedModelError, match=r"qwen3.*differ"):
        check_against_eager(bad)
