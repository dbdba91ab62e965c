"""8-bit weights: close to the exact product, alike in every batch, and nothing that routes."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.build import EngineConfig, build_engine
from engine.models.fused_drafter import fuse_drafter
from engine.models.fused_layers import FusedLayer
from engine.models.int8 import Int8Linear, Int8Matrix, add_linear, linear, quantize_weights
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import (
    Ask,
    TinyModels,
    count_drafts,
    load_tiny_models,
    make_engine,
    run_all,
    tokens,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_close_to_the_exact_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 64).to(dtype), torch.randn(32, 64).to(dtype)
    seen = Int8Matrix.of(weight)(x)
    exact = x.float() @ weight.float().t()
    assert seen.dtype is dtype
    assert (seen.float() - exact).norm() / exact.norm() < 0.015


def test_values_on_the_grid_are_multiplied_exactly() -> None:
    weight = torch.tensor([[127.0, -3.0, 0.0, 50.0] * 2, [-127.0, 1.0, 2.0, 3.0] * 2])
    x = torch.tensor([[1.0, 127.0, -64.0, 0.0] * 2])
    torch.testing.assert_close(Int8Matrix.of(weight)(x), x @ weight.t())


def test_a_row_of_zeros_gives_zeros() -> None:
    matrix = Int8Matrix.of(torch.zeros(8, 16))
    assert not matrix(torch.randn(2, 16)).any()
    assert not Int8Matrix.of(torch.randn(8, 16))(torch.zeros(2, 16)).any()


def test_what_a_row_gives_does_not_depend_on_the_rows_beside_it() -> None:
    torch.manual_seed(1)
    matrix = Int8Matrix.of(torch.randn(48, 64))
    x = torch.randn(40, 64)
    x[7] *= 1000.0  # a scale for the whole batch would crush all others
    together = matrix(x)
    for count in (1, 2, 7, 17):
        assert torch.equal(matrix(x[:count]), together[:count])


def test_a_slice_of_a_matrix_is_the_matrix_of_the_slice() -> None:
    weight, x = torch.randn(24, 16), torch.randn(3, 16)
    assert torch.equal(Int8Matrix.of(weight)[8:](x), Int8Matrix.of(weight[8:])(x))


def test_biases_and_residuals_are_added_to_either_kind() -> None:
    weight, x, other = torch.randn(8, 16), torch.randn(3, 16), torch.randn(3, 8)
    matrix, bias = Int8Matrix.of(weight), torch.randn(8)
    plain = matrix(x)
    assert torch.equal(linear(x, matrix, bias), plain + bias)
    assert torch.equal(add_linear(other, x, matrix), other + plain)
    torch.testing.assert_close(linear(x, weight, bias), x @ weight.t() + bias)
    torch.testing.assert_close(add_linear(other, x, weight), other + x @ weight.t())


def test_routers_and_odd_sizes_stay_as_they_are() -> None:
    model = nn.Module()
    model.gate, model.odd, model.up = nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(8, 16)
    assert quantize_weights(model) == 1
    assert isinstance(model.up, Int8Linear)
    assert type(model.gate) is type(model.odd) is nn.Linear
    assert model.up(torch.ones(2, 8)).shape == (2, 16)


@pytest.fixture
def quantized(tmp_path: Path) -> TinyModels:
    """The tiny pair as an engine on a CPU has it: fused, then in 8 bits."""
    models = load_tiny_models(tmp_path)
    assert models.drafter is not None
    assert models.verifier.fuse_layers()
    fuse_drafter(models.drafter)
    layers = [layer for layer in models.verifier.model.modules() if isinstance(layer, FusedLayer)]
    assert quantize_weights(models.verifier.model) == 4 * len(layers) + 1  # and the head
    assert quantize_weights(models.drafter) > 4
    assert all(isinstance(layer.down, Int8Matrix) for layer in layers)
    return models


def test_deer_writes_the_tokens_of_ar_in_8_bits(quantized: TinyModels) -> None:
    asks = [
        Ask(
            tokens(3 + 5 * seed, seed),
            SamplingParams(seed=seed, temperature=t, max_tokens=16, ignore_eos=True),
        )
        for seed, t in enumerate((0.0, 0.7, 1.0, 1.0, 0.7, 1.0))
    ]
    alone = [run_all(make_engine(quantized, prefix_cache=False), [one])[0] for one in asks]
    drafted = [replace(one, mode="deer", draft_length=1 + i % 5) for i, one in enumerate(asks)]
    together = run_all(make_engine(quantized), drafted)
    assert [r.token_ids for r in together] == [r.token_ids for r in alone]
    accepted, refused = count_drafts(together)
    assert accepted > 3
    assert refused > 3


def test_an_engine_in_8_bits_starts_and_says_what_that_costs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "dfastllm.engine")
    exact = build_engine(EngineConfig(device="cpu", prefix_cache=False))
    rounded = build_engine(EngineConfig(device="cpu", prefix_cache=False, use_8bit=True))
    said = [r.getMessage() for r in caplog.records if "8-bit weights" in r.getMessage()]
    assert any("logits of the verifier differ by" in line for line in said)
    assert exact.fingerprint != rounded.fingerprint
    params = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
    story = "Once upon a time, there was a little girl named Lily. She loved to"
    assert rounded.generate([story], params, mode="deer") == rounded.generate(
        [story], params, mode="ar"
    )
