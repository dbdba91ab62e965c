"""DFlash drafters in every published layout: paged drafts against published equations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MuseGlimmerAssistantConfig,
    MuseGlimmerAssistantModel,
)
from transformers.cache_utils import DFlashCache

from engine.models.attention import sdpa_backend
from engine.models.causal_lm import CausalLM, UnsupportedModelError
from engine.models.dflash import load_drafter
from engine.models.fused_drafter import fuse_drafter
from engine.models.loader import load_pair
from engine.models.model_runner import ModelRunner
from engine.models.packing import Span
from tests.engine.test_families_loading import shard
from tests.engine.tiny_drafters import (
    BLOCK,
    BOTH_WAYS,
    LAYERS,
    MASK,
    PUBLISHED,
    SIZES,
    SLIDING,
    WINDOW,
    drafter_tensors,
    published_hidden,
)
from tests.engine.tiny_families import rope
from tests.engine.tiny_models import SHAPE, tiny_qwen3

CPU = torch.device("cpu")


def save(folder: Path, raw: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw), "utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def runner_for(folder: Path, drafter: Path, fuse: bool = False) -> ModelRunner:
    tiny_qwen3().save_pretrained(folder / "verifier")
    verifier, loaded = load_pair(str(folder / "verifier"), str(drafter), torch.float32, CPU)
    assert loaded is not None
    if fuse:
        fuse_drafter(loaded)
    return ModelRunner(verifier, loaded, num_pages=32, page_size=4, backend=sdpa_backend)


def tapped_states(runner: ModelRunner, ids: list[int]) -> Tensor:
    runner.verifier.eager_logits(torch.tensor([ids]))
    return runner.verifier.tapped_hidden()


CONTEXTS = ([5, 9, 100, 7, 8, 300, 21, 44, 8, 2, 19], [6, 7, 8])


@torch.inference_mode()
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize(
    ("change", "theta_factor"),
    [
        ({}, 1.0),
        (SLIDING, 1.0),
        (BOTH_WAYS, 1.0),
        ({"is_causal": True}, 1.0),
        ({"attention_bias": True}, 1.0),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 4.0),
    ],
    ids=["full", "sliding", "both_ways", "causal", "bias", "scaled_rope"],
)
def test_a_published_drafter_drafts_what_it_publishes(
    change: dict[str, Any], theta_factor: float, fuse: bool, tmp_path: Path
) -> None:
    raw = PUBLISHED | change
    tensors = drafter_tensors(bias=raw["attention_bias"])
    runner = runner_for(tmp_path, save(tmp_path / "drafter", raw, tensors), fuse)

    def turn(x: Tensor) -> Tensor:  # rotation by theta ** -2i/D, positions divided by the factor
        return rope(x, raw["rope_theta"], torch.arange(len(x)) / theta_factor)

    pages = [[3, 9, 4, 6], [12, 11]]
    spans = [Span(ids, 0, page) for ids, page in zip(CONTEXTS, pages, strict=True)]
    runner.verify(spans, [])
    blocks = [
        Span([50 + i, *[MASK] * 3], len(ids), page)
        for i, (ids, page) in enumerate(zip(CONTEXTS, pages, strict=True))
    ]
    found = runner.draft(blocks, [3, 3])
    for i, ids in enumerate(CONTEXTS):
        embeds = runner.verifier.embed(torch.tensor([50 + i, *[MASK] * 3]))
        hidden = published_hidden(tensors, raw, tapped_states(runner, ids), embeds, turn)
        expected = runner.verifier.logits(hidden[1:])
        torch.testing.assert_close(found[3 * i : 3 * i + 3], expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["sliding_attention", "full_attention", None])
def test_a_drafter_in_transformers_layout_drafts_what_transformers_does(
    kind: str | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    types = None if kind is None else [kind] * LAYERS
    config = MuseGlimmerAssistantConfig(
        **SIZES,
        block_size=BLOCK,
        mask_token_id=MASK,
        target_layer_ids=[0, 2],
        sliding_window=WINDOW,
        layer_types=types,
    )
    theirs = MuseGlimmerAssistantModel(config).eval()
    for weight in theirs.parameters():
        nn.init.normal_(weight, mean=1.0 if weight.ndim == 1 else 0.0, std=0.25)
    theirs.save_pretrained(tmp_path / "drafter")
    runner = runner_for(tmp_path, tmp_path / "drafter")
    assert runner.drafter is not None
    assert runner.drafter.config.window(0) == (None if kind == "full_attention" else WINDOW + 1)
    theirs = AutoModel.from_pretrained(tmp_path / "drafter", attn_implementation="eager")
    ids, pages = CONTEXTS[0], [3, 9, 4, 6]
    runner.verify([Span(ids, 0, pages)], [])
    block = [50, *[MASK] * 3]
    found = runner.draft([Span(block, len(ids), pages)], [3])
    cache = DFlashCache(config=theirs.config)
    cache.set_previous_accepted_tokens(len(ids))
    hidden = theirs(
        noise_embeds=runner.verifier.embed(torch.tensor(block))[None],
        context_hidden_states=tapped_states(runner, ids)[None],
        position_ids=torch.arange(len(ids) + BLOCK)[None],
        past_key_values=cache,
    ).last_hidden_state[0]
    expected = runner.verifier.logits(hidden[1:])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_what_a_drafter_does_with_shared_embedding_and_head_is_honoured(tmp_path: Path) -> None:
    plain = runner_for(tmp_path, save(tmp_path / "plain", PUBLISHED, drafter_tensors()))
    inner = PUBLISHED["dflash_config"] | {
        "block_size": BLOCK,
        "output_multiplier": 0.25,
        "final_logit_softcapping": 2.0,
    }
    raw = {k: v for k, v in PUBLISHED.items() if k != "block_size"} | {"dflash_config": inner}
    shaped = runner_for(tmp_path, save(tmp_path / "shaped", raw, drafter_tensors()))
    logits = []
    for runner in (plain, shaped):
        runner.verify([Span(CONTEXTS[0], 0, [1, 2, 3, 4])], [])
        logits.append(runner.draft([Span([50, *[MASK] * 3], 11, [1, 2, 3, 4])], [3]))
    torch.testing.assert_close(logits[1], 2.0 * torch.tanh(0.25 * logits[0] / 2.0))


@torch.inference_mode()
def test_a_drafter_is_given_bare_embeddings_times_its_own_scale() -> None:
    torch.manual_seed(0)
    config = Gemma3TextConfig(**SHAPE, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    verifier = CausalLM(Gemma3ForCausalLM(config))  # which scales by sqrt(64) = 8 for itself
    ids = torch.tensor([3, 7])
    bare = verifier.model.get_input_embeddings().weight[ids]
    assert torch.equal(verifier.embed(ids), bare)
    torch.testing.assert_close(verifier.embed(ids, 8.0), verifier.model.get_input_embeddings()(ids))


def test_a_drafter_in_shards_loads_as_well(tmp_path: Path) -> None:
    tensors = drafter_tensors()
    folder = shard(save(tmp_path, PUBLISHED, tensors), tensors)
    loaded = load_drafter(folder).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"architectures": ["DFlash2DraftModel"]}, "DFlash 2.*convolutions"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope of type 'dynamic'"),
        ({"intermediate_size": 95}, r"other shapes.*layers\.0\.mlp\.down_proj"),
        ({"num_hidden_layers": 2}, r"unknown weights: layers\.2"),
    ],
)
def test_a_drafter_that_would_be_computed_otherwise_is_refused(
    change: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    folder = save(tmp_path, PUBLISHED | change, drafter_tensors())
    with pytest.raises(UnsupportedModelError, match=complaint):
        load_drafter(folder)


def test_a_config_with_all_that_drafters_have_goes_there_and_back(tmp_path: Path) -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    inner = PUBLISHED["dflash_config"] | {"output_multiplier": 0.5, "input_embedding_scale": 2.0}
    raw = PUBLISHED | BOTH_WAYS | {"rope_scaling": scaling, "dflash_config": inner}
    config = load_drafter(save(tmp_path, raw, drafter_tensors())).config
    assert type(config).from_json(json.loads(json.dumps(config.to_json()))) == config
    assert not config.is_plain
