"""Verifiers of many families: packed, paged logits against transformers' own eager forward."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from engine.models.attention import PagedContext, sdpa_backend
from engine.models.causal_lm import CausalLM, UnsupportedModelError, load_causal_lm
from engine.models.explicit_attention import attend_explicitly
from engine.models.model_runner import ModelRunner
from engine.models.packing import Span
from engine.models.self_test import check_against_eager

CPU = torch.device("cpu")
WINDOW = 6
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ALTERNATING = ["sliding_attention", "full_attention"] * 2
GEMMA4: dict[str, Any] = {
    "head_dim": 8,
    "global_head_dim": 16,
    "sliding_window": WINDOW,
    "layer_types": ALTERNATING,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 300,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
        },
    ),
    "mistral": ("Mistral", {"sliding_window": WINDOW}),
    "mixtral": ("Mixtral", {"sliding_window": None, "num_local_experts": 3}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 16,
            "sliding_window": WINDOW,
            "layer_types": ALTERNATING,
            "attn_logit_softcapping": 0.5,  # low, so that scores reach it
            "query_pre_attn_scalar": 1,
        },
    ),
    "gemma3": (
        "Gemma3ForCausalLM Gemma3TextConfig",
        {"head_dim": 16, "sliding_window": WINDOW, "layer_types": ALTERNATING},
    ),
    "gemma4": (  # wider heads, and fewer, in full layers; their values are their keys
        "Gemma4ForCausalLM Gemma4TextConfig",
        GEMMA4
        | {
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "enable_moe_block": True,
            "num_experts": 3,
            "top_k_experts": 2,
            "moe_intermediate_size": 16,
        },
    ),
    "gemma4_shared": (  # the last layers attend to keys and values of earlier ones
        "Gemma4ForCausalLM Gemma4TextConfig",
        GEMMA4
        | {
            "num_hidden_layers": 6,
            "layer_types": ALTERNATING + ALTERNATING[:2],
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 8,
        },
    ),
    "deepseek_v3": (  # latent attention, whose keys are wider than its values
        "DeepseekV3",
        {
            "num_key_value_heads": 4,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 6,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
        },
    ),
    "gpt_oss": (
        "GptOss",
        {
            "head_dim": 16,
            "sliding_window": WINDOW,
            "layer_types": ALTERNATING,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", {"sliding_window": WINDOW, "layer_types": ALTERNATING}),
    "phi3": ("Phi3", {"sliding_window": WINDOW}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 1, 1, 0]}),
    "granite": ("Granite", {"attention_multiplier": 0.3, "logits_scaling": 2.0}),
    "cohere2": ("Cohere2", {"head_dim": 8, "sliding_window": WINDOW, "layer_types": ALTERNATING}),
}


def tiny(name: str) -> transformers.PreTrainedModel:
    """A model with weights that matter: transformers' own are too small for attention to show."""
    kind, changes = FAMILIES[name]
    model_class, config_class = (
        kind.split() if " " in kind else (f"{kind}ForCausalLM", f"{kind}Config")
    )
    config = getattr(transformers, config_class)(**SIZES | changes)
    model = getattr(transformers, model_class)(config).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2, generator=generator)
        else:
            weight.data += 0.2 * torch.randn(weight.shape, generator=generator)
    own: transformers.PreTrainedModel = model
    return own


def load(folder: Path) -> CausalLM:
    return load_causal_lm(folder, dtype=torch.float32, device=CPU)


@torch.inference_mode()
@pytest.mark.parametrize("name", FAMILIES)
def test_packed_rows_get_the_logits_of_the_family(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    model.save_pretrained(tmp_path)
    model.set_attn_implementation("eager")
    verifier = load(tmp_path)
    runner = ModelRunner(verifier, None, num_pages=32, page_size=4, backend=sdpa_backend)
    generator = torch.Generator().manual_seed(1)
    long, short = (torch.randint(300, (n,), generator=generator) for n in (40, 9))
    pages, other = list(range(1, 12)), [20, 16, 18]
    runner.verify([Span(long[:33].tolist(), 0, pages), Span(short[:4].tolist(), 0, other)], [])
    spans = [Span(short[4:].tolist(), 4, other), Span(long[33:].tolist(), 33, pages)]
    found = runner.verify(spans, list(range(12)))
    expected = torch.cat((model(short[None]).logits[0, 4:], model(long[None]).logits[0, 33:]))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    (check_again,) = check_against_eager(runner)
    runner.fuse_layers()
    check_again()


SEES_IMAGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        {"head_dim": 16, "sliding_window": WINDOW, "layer_types": ALTERNATING},
        VISION | {"image_size": 28, "patch_size": 14},
    ),
    "mistral3": (
        {"model_type": "mistral", "head_dim": 8, "sliding_window": None},
        VISION | {"model_type": "pixtral", "image_size": 28, "patch_size": 14},
    ),
    "qwen3_vl": (
        {"head_dim": 8, "rope_parameters": {"rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
        {"hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2}
        | {"out_hidden_size": 32, "deepstack_visual_indexes": [0]},
    ),
    "muse_glimmer": ({"head_dim": 8, "sliding_window": WINDOW}, VISION),
}
SMALL = {"out_hidden_size": 64, "projector_hidden_size": 16}


@torch.inference_mode()
@pytest.mark.parametrize("kind", SEES_IMAGES)
def test_a_model_that_also_sees_images_writes_text(kind: str, tmp_path: Path) -> None:
    text, vision = SEES_IMAGES[kind]
    config = transformers.AutoConfig.for_model(
        kind, text_config=SIZES | text, vision_config=vision, **SMALL
    )
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2, generator=generator)
    model.save_pretrained(tmp_path)
    model.set_attn_implementation("eager")
    runner = ModelRunner(load(tmp_path), None, num_pages=32, page_size=4, backend=sdpa_backend)
    ids = torch.randint(300, (20,), generator=generator)
    runner.verify([Span(ids[:13].tolist(), 0, [3, 2, 5, 4, 1])], [])
    found = runner.verify([Span(ids[13:].tolist(), 13, [3, 2, 5, 4, 1])], list(range(7)))
    expected = model(input_ids=ids[None]).logits[0, 13:]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def without_window(
    q: Tensor, layer: int, context: PagedContext, scale: float, window: int | None
) -> Tensor:
    return sdpa_backend(q, layer, context, scale, None)


def test_the_self_test_reaches_beyond_a_window_of_its_own_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "long", ("Mistral", {"sliding_window": 40}))
    tiny("long").save_pretrained(tmp_path)
    good = ModelRunner(load(tmp_path), None, num_pages=32, page_size=4, backend=sdpa_backend)
    (check_again,) = check_against_eager(good)
    good.fuse_layers()
    check_again()
    bad = ModelRunner(load(tmp_path), None, num_pages=32, page_size=4, backend=without_window)
    with pytest.raises(UnsupportedModelError, match=r"mistral.*logits differ"):
        check_against_eager(bad)


def test_a_window_that_is_too_long_to_leave_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(FAMILIES, "long", ("Mistral", {"sliding_window": 4096}))
    tiny("long").save_pretrained(tmp_path)
    caplog.set_level(logging.INFO, "dfastllm.engine")
    runner = ModelRunner(load(tmp_path), None, num_pages=32, page_size=4, backend=sdpa_backend)
    check_against_eager(runner)
    assert "window of 4096 is longer than the self-test" in caplog.text


@pytest.mark.parametrize(
    ("softcap", "sunk"), [(None, False), (0.7, False), (None, True), (2, True)]
)
def test_attention_written_out_is_the_published_sum(softcap: float | None, sunk: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, 5, 8, generator=generator) for n in (4, 2, 2))
    mask = torch.ones(5, 5).tril().bool()[None, None]
    sinks = torch.randn(4, generator=generator) if sunk else None
    found = attend_explicitly(q, k, v, mask, 0.5, softcap=softcap, sinks=sinks)
    for head in range(4):
        for row in range(5):
            scores = 0.5 * k[0, head // 2, : row + 1] @ q[0, head, row]
            scores = scores if softcap is None else softcap * (scores / softcap).tanh()
            powers = scores.exp()
            total = powers.sum() + (0.0 if sinks is None else sinks[head].exp())
            expected = (powers / total) @ v[0, head // 2, : row + 1]
            torch.testing.assert_close(found[0, head, row], expected)
