"""Fused layers against the layers of transformers that they replace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from engine.models.attention import sdpa_backend
from engine.models.fused_layers import FusedLayer
from engine.models.loader import load_pair
from engine.models.model_runner import ModelRunner
from engine.models.packing import Span
from tests.engine.tiny_models import SHAPE, VOCAB_SIZE, tiny_qwen3


def qwen2() -> PreTrainedModel:
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE))
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.5)  # they start at zero, which would prove nothing
    return model


MAKERS = {
    "qwen3": tiny_qwen3,
    "qwen2": qwen2,
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=7)),
    "tied": lambda: tiny_qwen3(tie_word_embeddings=False),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_fused_model_computes_what_transformers_does(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = MAKERS[kind]()
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)  # they start at one
    model.save_pretrained(tmp_path)
    runner = load_runner(tmp_path)
    ids = torch.randint(VOCAB_SIZE, (30,)).tolist()
    expected = runner.verifier.eager_logits(torch.tensor([ids]))[0]
    assert runner.verifier.fuse_layers()
    pages = list(range(1, 9))
    first = runner.verify([Span(ids[:19], 0, pages)], list(range(19)))
    rest = runner.verify([Span(ids[19:], 19, pages)], list(range(11)))
    torch.testing.assert_close(torch.cat((first, rest)), expected, atol=2e-5, rtol=1e-4)


def test_tapped_hidden_states_are_those_of_the_fused_layers(tmp_path: Path) -> None:
    tiny_qwen3().save_pretrained(tmp_path)
    runner = load_runner(tmp_path, taps=(0, 2))
    span = Span(list(range(9)), 0, [1, 2, 3])
    runner.verify([span], [8])
    expected = runner.verifier.tapped_hidden().clone()
    runner.verifier.fuse_layers()
    runner.verify([span], [8])
    torch.testing.assert_close(runner.verifier.tapped_hidden(), expected, atol=2e-5, rtol=1e-4)


def test_layers_that_are_not_known_stay_as_they_are(tmp_path: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, hidden_act="gelu"))
    model.save_pretrained(tmp_path)
    runner = load_runner(tmp_path)
    assert not runner.verifier.fuse_layers()
    layers = runner.verifier.model.get_decoder().layers
    assert not any(isinstance(layer, FusedLayer) for layer in layers)


def load_runner(path: Path, taps: tuple[int, ...] = ()) -> ModelRunner:
    verifier, _ = load_pair(str(path), None, torch.float32, torch.device("cpu"))
    if taps:
        verifier = type(verifier)(verifier.model, tap_layers=taps)
    return ModelRunner(verifier, None, num_pages=64, page_size=4, backend=sdpa_backend)
