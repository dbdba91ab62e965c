"""When models run through the CPU kernels, and what happens when they cannot."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from engine.build import EngineConfig, build_engine
from engine.decoding.noise import gumbel
from engine.models.attention import sdpa_backend
from engine.models.canvas_lm import load_canvas_lm
from engine.models.cpu.packed_model import PackedModel
from engine.models.cpu.product import Storage
from engine.models.cpu_kernels import kernel_gumbel
from engine.models.model_runner import ModelRunner
from engine.models.packing import Span
from tests.engine.kernel_models import (
    MASK,
    SHAPE,
    eager,
    load_runner,
    make_texts,
    save_draft_kind,
    save_kind,
)
from tests.engine.tiny_canvas import save_canvas
from tests.engine.tiny_tokenizers import make_byte_level


def runs_by_torch(path: Path, runner: ModelRunner) -> None:
    """It refuses the kernels, and computes as before."""
    runner.fuse_layers()
    assert not runner.use_kernels(1)
    assert not runner.uses_kernels
    [text] = make_texts([20])
    spans = [Span(text.token_ids, 0, list(range(1, 11)))]
    found = runner.verify(spans, list(range(20)))
    torch.testing.assert_close(found, eager(path, text.token_ids), atol=1e-4, rtol=1e-4)


def save_llama(folder: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE | changes)).save_pretrained(folder)
    return folder


def save_gemma(folder: Path) -> Path:
    torch.manual_seed(0)
    Gemma2ForCausalLM(Gemma2Config(**SHAPE, query_pre_attn_scalar=32)).save_pretrained(folder)
    return folder


REFUSED: dict[str, Any] = {
    "head_dim": lambda folder: save_llama(folder, head_dim=16),
    "hidden size": lambda folder: save_llama(folder, hidden_size=80),
    "activation": lambda folder: save_llama(folder, hidden_act="gelu"),
    "biases": lambda folder: save_llama(folder, attention_bias=True),
    "family": save_gemma,
    "rotation by the text's length": lambda folder: save_llama(
        folder,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_they_do_not_know_runs_by_torch_and_the_log_says_why(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dfastllm.engine")
    path = REFUSED[name](tmp_path)
    runs_by_torch(path, load_runner(path))
    assert "no CPU kernels: " in caplog.text
    assert "is computed by other layers than they know" in caplog.text


def test_small_pages_are_read_by_torch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dfastllm.engine")
    path = save_kind(tmp_path)
    runs_by_torch(path, load_runner(path, page_size=4))
    assert "pages of 4 tokens are no multiple of 16" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": 7, "sliding_layers": (1,)},
        {"causal": True},
        {"attention_bias": True},
        {"head_dim": 16},
    ],
    ids=str,
)
def test_a_drafter_that_they_do_not_know_keeps_the_verifier_with_torch_too(
    changes: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dfastllm.engine")
    path, drafter = save_kind(tmp_path / "v"), save_draft_kind(tmp_path / "d", **changes)
    runner = load_runner(path, drafter)
    runs_by_torch(path, runner)
    assert "the drafter has windows, biases, or sizes" in caplog.text
    assert runner.draft([Span([1, *[MASK] * 7], 20, list(range(1, 11)))], [7]).isfinite().all()


@pytest.mark.parametrize(
    ("module", "message"),
    [("numba", "numba is not installed"), ("engine.models.cpu.runner", "no CPU kernels: ")],
)
def test_without_a_numba_that_works_models_run_by_torch(
    module: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is not there, or what is imported of it fails: it refuses a NumPy newer than itself."""
    caplog.set_level(logging.INFO, "dfastllm.engine")
    monkeypatch.setitem(sys.modules, module, None)
    path = save_kind(tmp_path)
    runs_by_torch(path, load_runner(path))
    assert message in caplog.text
    assert kernel_gumbel() is gumbel, "the noise, too, is torch's then"


def test_a_canvas_model_runs_by_torch_and_its_verifier_keeps_its_layers(tmp_path: Path) -> None:
    path = save_kind(tmp_path / "verifier")
    canvas = load_canvas_lm(
        save_canvas(tmp_path / "canvas"), dtype=torch.float32, device=torch.device("cpu")
    )
    runner = ModelRunner(
        load_runner(path).verifier,
        None,
        num_pages=32,
        page_size=16,
        backend=sdpa_backend,
        canvas=canvas,
    )
    runs_by_torch(path, runner)


def test_layers_that_were_taken_over_say_so(tmp_path: Path) -> None:
    path, drafter = save_kind(tmp_path / "v"), save_draft_kind(tmp_path / "d")
    runner = load_runner(path, drafter, num_threads=1)
    other = ModelRunner(runner.verifier, None, num_pages=32, page_size=16, backend=sdpa_backend)
    with pytest.raises(RuntimeError, match="taken over by the CPU kernels"):
        other.verify([Span([1, 2], 0, [1])], [1])
    assert not other.use_kernels(1), "they cannot be had twice"
    held = sum(weight.nbytes for weight in runner.drafter.layers.parameters())  # type: ignore[union-attr]
    assert held == 0, "the drafter's weights are held twice"


@pytest.mark.parametrize("kind", ["qwen3", "qwen3 untied", "qwen2"])
def test_a_bfloat16_checkpoint_takes_half_the_memory_and_says_the_same(
    kind: str, tmp_path: Path
) -> None:
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        packed = PackedModel(load_fused(save_kind(tmp_path / dtype, kind, dtype)))
        weights = packed.layers.weights
        matrices = (weights.qkv, weights.out, weights.gate_up, weights.down, packed.head)
        sizes[dtype] = [matrix.nbytes for matrix in matrices]
        are_halves = packed.layers.storage is Storage.HALVES
        assert are_halves == (dtype == "bfloat16")
    assert sizes["float32"] == [2 * size for size in sizes["bfloat16"]]


def test_one_weight_with_more_bits_keeps_all_in_float32(tmp_path: Path) -> None:
    model = load_fused(save_kind(tmp_path, "qwen3", "bfloat16"))
    layer: Any = model.model.get_decoder().layers[1]  # type: ignore[operator]
    layer.down[5, 7] = 1.0 + 2.0**-20
    packed = PackedModel(model)
    assert packed.layers.storage is Storage.FLOATS
    assert np.float32(1.0 + 2.0**-20) in packed.layers.weights.down


def load_fused(path: Path) -> Any:
    runner = load_runner(path)
    runner.fuse_layers()
    return runner.verifier


@pytest.mark.parametrize("is_wanted", [True, False])
def test_an_engine_is_built_with_them_unless_its_config_says_no(
    is_wanted: bool, tmp_path: Path
) -> None:
    """And tested: the built engine's self-test compares them with eager logits."""
    path = save_kind(tmp_path / "v")
    make_byte_level(path)
    config = EngineConfig(
        model_path=str(path),
        drafter_path=str(save_draft_kind(tmp_path / "d")),
        max_batch_size=2,
        kv_memory_bytes=1 << 24,
        cpu_kernels=is_wanted,
    )
    assert build_engine(config)._runner.uses_kernels == is_wanted
