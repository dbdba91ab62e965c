"""What "auto" means on a CPU: bfloat16 where the kernels multiply in it, and float32 elsewhere."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.build import EngineConfig, build_engine, resolve
from engine.request.sampling_params import SamplingParams
from tests.engine.kernel_models import (
    MAKERS,
    load_runner,
    needs_bfloat16_products,
    save_draft_kind,
    save_kind,
)
from tests.engine.test_kernel_door import REFUSED
from tests.engine.tiny_canvas import save_canvas
from tests.engine.tiny_tokenizers import make_byte_level

PRODUCTS = "engine.models.cpu.weights.has_bfloat16_products"


@pytest.fixture(params=[True], autouse=True)
def has_products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this CPU has."""
    monkeypatch.setattr(PRODUCTS, lambda: request.param)


def chosen(folder: Path, **changes: Any) -> str:
    return resolve(EngineConfig(model_path=str(folder), device="cpu", **changes)).dtype


def save_changed(folder: Path, **changes: Any) -> Path:
    """A checkpoint in bfloat16 whose config.json says otherwise in these."""
    save_kind(folder, dtype="bfloat16")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@pytest.mark.parametrize("kind", MAKERS)
def test_a_checkpoint_in_bfloat16_is_multiplied_in_it(kind: str, tmp_path: Path) -> None:
    path = save_kind(tmp_path / "model", kind, "bfloat16")
    drafter = save_draft_kind(tmp_path / "drafter", "bfloat16")
    assert chosen(path) == chosen(path, drafter_path=str(drafter)) == "bfloat16"
    runner = load_runner(path, drafter, dtype="bfloat16")
    runner.fuse_layers()
    assert runner.use_kernels(1), "the promise is not kept"


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_the_kernels_refuse_stay_in_float32(name: str, tmp_path: Path) -> None:
    REFUSED[name](tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dtype": "bfloat16"}))
    assert chosen(tmp_path) == "float32"


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "float32"},
        {"dtype": None},
        {"model_type": "phi3"},
        {"quantization_config": {"quant_method": "fp8"}},
    ],
    ids=str,
)
def test_other_checkpoints_stay_in_float32(changes: dict[str, Any], tmp_path: Path) -> None:
    assert chosen(save_changed(tmp_path, **changes)) == "float32"


@pytest.mark.parametrize(
    "changes",
    [{"cpu_kernels": False}, {"use_8bit": True}, {"compile": True}, {"page_size": 8}],
    ids=str,
)
def test_without_the_kernels_all_stays_in_float32(changes: dict[str, Any], tmp_path: Path) -> None:
    path = save_kind(tmp_path, dtype="bfloat16")
    assert chosen(path, page_size=32) == "bfloat16"
    assert chosen(path, **changes) == "float32"


@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        ("bfloat16", {"sliding_window": 9, "sliding_layers": (1,)}),
        ("bfloat16", {"attention_bias": True}),
        ("bfloat16", {"causal": True}),
    ],
    ids=str,
)
def test_one_model_of_another_kind_keeps_all_in_float32(
    dtype: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    path = save_kind(tmp_path / "model", dtype="bfloat16")
    drafter = save_draft_kind(tmp_path / "drafter", dtype, **changes)
    assert chosen(path, drafter_path=str(drafter)) == "float32"
    canvas = save_canvas(tmp_path / "canvas")
    assert chosen(path, diffusion_path=str(canvas)) == "float32"


@pytest.mark.parametrize("has_products", [False], indirect=True)
def test_a_cpu_without_such_products_serves_in_float32_and_in_bfloat16_by_torch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_kind(tmp_path, dtype="bfloat16")
    make_byte_level(path)
    assert chosen(path) == "float32"
    caplog.set_level(logging.INFO, "dfastllm.engine")
    config = EngineConfig(model_path=str(path), device="cpu", dtype="bfloat16", max_model_len=64)
    engine = build_engine(config)
    assert not engine._runner.uses_kernels
    assert "torch.bfloat16 on cpu" in caplog.text
    assert engine.generate(["hello"], SamplingParams(max_tokens=3, temperature=0.0))


def test_without_numba_all_stays_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_kind(tmp_path, dtype="bfloat16")
    monkeypatch.setitem(sys.modules, "numba", None)
    assert chosen(path) == "float32"


@needs_bfloat16_products
def test_an_engine_says_what_it_multiplies_in_and_has_twice_the_room_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_kind(tmp_path, dtype="bfloat16")
    make_byte_level(path)
    fingerprints, num_pages = set(), {}
    for dtype in ("auto", "bfloat16", "float32"):
        caplog.clear()
        caplog.set_level(logging.INFO, "dfastllm.engine")
        config = EngineConfig(
            model_path=str(path), device="cpu", dtype=dtype, kv_memory_bytes=1 << 21
        )
        engine = build_engine(config)
        assert engine._runner.uses_kernels
        kind = "float32" if dtype == "float32" else "bfloat16"
        assert f"products in {kind}" in caplog.text
        fingerprints.add(engine.fingerprint)
        num_pages[dtype] = engine._runner.num_pages
    assert len(fingerprints) == 2
    assert num_pages["auto"] == num_pages["bfloat16"]
    assert num_pages["bfloat16"] == pytest.approx(2 * num_pages["float32"], abs=2)
