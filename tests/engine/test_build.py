"""What `build_engine` puts together, and what it refuses, saying why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import logging as transformers_logging

from engine.build import EngineConfig, ModeNotOfferedError, build_engine
from engine.models.attention import PagedContext, sdpa_backend
from engine.models.causal_lm import UnsupportedModelError
from engine.models.diffusion_lm import ContextKind, DiffusionConfig, DiffusionLM
from engine.models.loader import Models, check_pair
from engine.models.model_runner import ModelRunner
from engine.models.self_test import check_against_eager
from engine.request.errors import InvalidRequestError
from engine.request.options import GenerationOptions
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import TinyModels, make_engine
from tests.engine.tiny_models import tiny_drafter
from tests.engine.tiny_tokenizers import make_byte_level

transformers_logging.set_verbosity_error()  # its advice on odd tiny configurations


def config(models: TinyModels, **changes: object) -> EngineConfig:
    values = {
        "model_path": str(models.verifier_path),
        "drafter_path": str(models.drafter_path),
        "page_size": 4,
        "max_batch_size": 2,
        "kv_memory_bytes": 1 << 23,
    }
    return EngineConfig(**{**values, **changes})


@pytest.fixture
def copied(models: TinyModels, tmp_path: Path) -> TinyModels:
    """The same models in folders that a test may spoil."""
    for name in ("verifier", "drafter"):
        shutil.copytree(models.verifier_path.parent / name, tmp_path / name)
    return TinyModels(
        models.verifier,
        models.drafter,
        models.tokenizer,
        tmp_path / "verifier",
        tmp_path / "drafter",
    )


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_built_engine_answers_in_all_its_modes_alike(models: TinyModels) -> None:
    engine = build_engine(config(models))
    assert engine.modes == ("ar", "deer", "spec_diff")
    assert (engine.model_name, engine.max_model_len) == ("verifier", 256)
    params = SamplingParams(seed=1, max_tokens=6, ignore_eos=True)
    prompts = ["hello world", "a"]
    texts = engine.generate(prompts, params, mode="ar")
    assert engine.generate(prompts, params, mode="deer") == engine.generate(prompts, params)
    assert engine.generate(prompts, params) == texts
    greedy = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    assert engine.generate(prompts, params, mode="spec_diff") == texts
    assert engine.generate(prompts, greedy, mode="ar") != texts, "settings of the call before"


def test_a_default_mode_that_nothing_offers_stops_the_start(models: TinyModels) -> None:
    words = (
        r"^semi_ar: it needs a diffusion model, too; these models offer only ar, deer, spec_diff$"
    )
    with pytest.raises(ModeNotOfferedError, match=words):
        build_engine(config(models, default_mode="semi_ar"))
    words = r"^deer: it needs a drafter or a diffusion model, too; .* ar$"
    with pytest.raises(ModeNotOfferedError, match=words):
        build_engine(config(models, drafter_path=None, default_mode="deer"))
    with pytest.raises(ModeNotOfferedError, match=r"^warp: no strategy has this name, and "):
        build_engine(config(models, default_mode="warp"))


def test_a_disabled_mode_is_not_offered_whatever_the_models_allow(models: TinyModels) -> None:
    off = config(models, disabled_modes=frozenset({"deer", "spec_diff"}))
    assert build_engine(off).modes == ("ar",)
    with pytest.raises(ModeNotOfferedError, match=r"^deer: these models offer only ar$"):
        build_engine(replace(off, default_mode="deer"))


def test_an_unknown_mode_is_refused_and_the_known_ones_listed(models: TinyModels) -> None:
    engine = build_engine(config(models, drafter_path=None, self_test=False))
    assert engine.modes == ("ar",)
    with pytest.raises(InvalidRequestError, match=r"'deer'.* offers: ar$") as caught:
        engine.make_sequence("a", [1], SamplingParams(), mode="deer")
    assert caught.value.param == "mode"
    assert engine.make_sequence("a", [1], SamplingParams()).mode == "ar"


@pytest.mark.parametrize(
    ("prompt", "changes", "param"),
    [
        ([], {}, "prompt"),
        ([512], {}, "prompt"),
        ([-1], {}, "prompt"),
        ([1], {"options": GenerationOptions(block_length=8)}, "block_length"),
        ([1], {"mode": "ar", "options": GenerationOptions(draft_length=2)}, "draft_length"),
        ([1] * 256, {}, "messages"),
        ([1] * 200, {"params": SamplingParams(max_tokens=57)}, "max_tokens"),
        ([1], {"params": SamplingParams(logit_bias={512: 1.0})}, "logit_bias"),
        ([1], {"params": SamplingParams(stop_token_ids=(600,))}, "stop_token_ids"),
    ],
)
def test_a_request_that_can_never_run_is_refused_naming_the_field(
    models: TinyModels, prompt: list[int], changes: dict[str, object], param: str
) -> None:
    engine = make_engine(models)
    with pytest.raises(InvalidRequestError) as caught:
        engine.make_sequence("a", prompt, **{"params": SamplingParams(), **changes})
    assert caught.value.param == param


@pytest.mark.parametrize("page_size", [1, 2, 16])
def test_small_pages_and_a_small_context_are_fine(models: TinyModels, page_size: int) -> None:
    small = config(models, page_size=page_size, max_model_len=12, max_batch_size=1)
    engine = build_engine(small)
    engine.generate(["hello"], SamplingParams(max_tokens=4))


@pytest.mark.parametrize(
    "changes",
    [{"page_size": 0}, {"max_batch_size": 0}, {"max_model_len": 0}, {"dtype": "int3"}],
    ids=str,
)
def test_settings_out_of_range_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        EngineConfig(**changes)


def test_a_context_longer_than_the_model_was_made_for_is_refused(models: TinyModels) -> None:
    with pytest.raises(UnsupportedModelError, match=r"257.*256 positions"):
        build_engine(config(models, max_model_len=257))


def test_too_little_kv_memory_is_refused_with_the_way_out(models: TinyModels) -> None:
    with pytest.raises(UnsupportedModelError, match="lower max_model_len"):
        build_engine(config(models, kv_memory_bytes=1 << 12))


@pytest.mark.parametrize("which", ["verifier", "drafter"])
def test_a_folder_without_a_config_is_refused_by_name(copied: TinyModels, which: str) -> None:
    folder = copied.verifier_path.parent / which
    (folder / "config.json").unlink()
    with pytest.raises(UnsupportedModelError, match=f"{which}.*config.json is missing"):
        build_engine(config(copied))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_target_layers": 5}, "num_target_layers is 5.* 3"),
        ({"dflash_config": {"mask_token_id": 511, "target_layer_ids": [0, 7]}}, "target_layer_ids"),
    ],
)
def test_a_drafter_of_another_verifier_is_refused_naming_the_field(
    copied: TinyModels, change: dict[str, object], field: str
) -> None:
    edit(copied.drafter_path, **change)
    with pytest.raises(UnsupportedModelError, match=f"another verifier: {field}"):
        build_engine(config(copied))


def test_a_causal_model_is_no_drafter(models: TinyModels) -> None:
    with pytest.raises(UnsupportedModelError, match=r"no DFlash drafter.*dflash_config"):
        build_engine(config(models, drafter_path=str(models.verifier_path)))


def test_a_checkpoint_that_lacks_a_weight_is_refused(copied: TinyModels) -> None:
    """transformers would fill it with random numbers and go on."""
    file = copied.verifier_path / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"lacks weights: .*1.mlp.up_proj"):
        build_engine(config(copied))


SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}


def alibi() -> transformers.PreTrainedModel:
    sizes = {name: SIZES[name] for name in SIZES if name != "num_key_value_heads"}
    return transformers.FalconForCausalLM(transformers.FalconConfig(**sizes, alibi=True))


def bloom() -> transformers.PreTrainedModel:
    return transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4)
    )


def recurrent() -> transformers.PreTrainedModel:
    return transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2)
    )


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (alibi, "model_type falcon"),
        (bloom, "bloom is not supported"),
        (recurrent, "mamba is not supported"),
    ],
)
def test_a_model_whose_attention_is_not_ours_is_refused(
    tmp_path: Path, make: Callable[[], transformers.PreTrainedModel], why: str
) -> None:
    torch.manual_seed(0)
    make().eval().save_pretrained(tmp_path)
    make_byte_level(tmp_path)
    with pytest.raises(UnsupportedModelError, match=why):
        build_engine(EngineConfig(model_path=str(tmp_path), max_batch_size=1, max_model_len=32))


def test_logits_that_differ_from_the_models_own_are_refused(models: TinyModels) -> None:
    def twice_as_sharp(
        q: Tensor, layer: int, context: PagedContext, scale: float, window: int | None
    ) -> Tensor:
        return sdpa_backend(q, layer, context, scale * 2, window)

    runner = ModelRunner(models.verifier, None, num_pages=9, page_size=4, backend=twice_as_sharp)
    with pytest.raises(UnsupportedModelError, match=r"qwen3.*logits differ"):
        check_against_eager(runner)


def test_learned_positions_are_no_obstacle(tmp_path: Path) -> None:
    torch.manual_seed(0)
    gpt2 = transformers.GPT2Config(
        vocab_size=300,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    transformers.GPT2LMHeadModel(gpt2).eval().save_pretrained(tmp_path)
    make_byte_level(tmp_path)
    engine = build_engine(EngineConfig(model_path=str(tmp_path), max_batch_size=1))
    assert engine.generate(["hello"], SamplingParams(max_tokens=3, temperature=0.0))


def fingerprint(models: TinyModels, **changes: object) -> str:
    return build_engine(config(models, self_test=False, **changes)).fingerprint


def test_the_fingerprint_changes_with_whatever_changes_tokens(copied: TinyModels) -> None:
    first = fingerprint(copied)
    assert fingerprint(copied, max_batch_size=3) == first
    assert fingerprint(copied, options=GenerationOptions(draft_length=2)) == first
    assert fingerprint(copied, options=GenerationOptions(denoising_steps=2)) != first
    assert fingerprint(copied, default_mode="ar") != first
    assert fingerprint(copied, dtype="bfloat16") != first
    file = copied.verifier_path / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][3] += 0.5
    save_file(weights, file, metadata={"format": "pt"})
    second = fingerprint(copied)
    assert second != first
    make_byte_level(copied.verifier_path, chat_template="{{ messages }}")
    assert fingerprint(copied) not in (first, second)


def test_a_pair_that_does_not_fit_is_seen_before_anything_runs(models: TinyModels) -> None:
    other = tiny_drafter()
    object.__setattr__(other.config, "vocab_size", 77)
    with pytest.raises(UnsupportedModelError, match="vocab_size is 77"):
        check_pair(models.verifier, other, 200)
    with pytest.raises(UnsupportedModelError, match="tokenizer has 600 tokens"):
        check_pair(models.verifier, models.drafter, 600)
    assert models.drafter is not None
    unknown = tiny_drafter()
    object.__setattr__(unknown.config, "mask_token_id", unknown.config.vocab_size)
    with pytest.raises(UnsupportedModelError, match="mask_token_id"):
        check_pair(models.verifier, unknown, 200)


def test_no_text_is_longer_than_each_of_the_models_can_read(models: TinyModels) -> None:
    short = copy(models.verifier)
    short.max_positions = 100
    config = DiffusionConfig(mask_token_id=1, logit_shift=True, context=ContextKind.CAUSAL)
    assert Models(models.verifier, None, None).max_positions == 256
    assert Models(models.verifier, None, DiffusionLM(short, config)).max_positions == 100
