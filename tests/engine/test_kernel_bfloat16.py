"""Products in bfloat16: what they round, what they do not, and who computes with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from engine.models.cpu import bfloat16, product
from engine.models.cpu.packed_model import PackedModel
from engine.models.cpu.product import Floats, Storage, num_products, pack_panels
from engine.models.cpu.tile import TWO_WIDE, WIDE
from tests.engine.kernel_entries import entry
from tests.engine.kernel_models import (
    MAKERS,
    eager,
    load_runner,
    make_texts,
    needs_bfloat16_products,
    read,
    save_draft_kind,
    save_kind,
)
from tests.engine.test_kernel_drafts import ANCHORS, LENGTHS, MIXED, block
from tests.engine.test_kernel_forwards import LENGTHS as TEXTS
from tests.engine.test_kernel_forwards import PLAN

round_rows, multiply = entry(bfloat16.round_rows), entry(product.multiply)
multiply_panels, project = entry(product.multiply_panels), entry(product.project)

pytestmark = [needs_bfloat16_products, pytest.mark.usefixtures("all_helpers")]
RANDOM = np.random.default_rng(0)
HALF_A_UNIT = 2.0**-9
"""What rounding changes of a number at most, as a part of it."""


def floats(*shape: int) -> Floats:
    return RANDOM.standard_normal(shape).astype(np.float32)


def rounded(array: Floats) -> Floats:
    found: Floats = torch.from_numpy(array).bfloat16().float().numpy()
    return found


def pairs(array: Floats) -> Any:
    """[..., 2 N] of numbers that are bfloat16 -> [..., N] uint32."""
    return (array.view(np.uint32) >> 16).astype(np.uint16).view(np.uint32)


@pytest.mark.parametrize("size", [1, 2, 15, 16, 33, 64])
def test_rows_are_rounded_to_the_nearest_of_two_equally_near_ones_to_the_even(size: int) -> None:
    rows = floats(5, size)
    rows.flat[:4] = 1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8, -3e38, 0.0
    padded = np.zeros((5, size + size % 2), np.float32)
    padded[:, :size] = rounded(rows)
    assert np.array_equal(round_rows(rows), pairs(padded))


@pytest.mark.parametrize(
    ("shape", "starts"),
    [(WIDE, [0, 16]), (TWO_WIDE, [0, 16, 37, 53])],
)
def test_a_product_of_any_number_of_rows_is_numpys_and_touches_nothing_beside_it(
    shape: int, starts: list[int]
) -> None:
    """starts: where the columns of each vector begin, the first half's at 0."""
    depth, lda, ldw, ldc, a0, w0, c0 = 21, 25, 90, 69, 3, 38, 5
    apart, width = starts[len(starts) // 2], 16 * len(starts)
    columns = [start + i for start in starts for i in range(16)]
    for num_rows in range(18):
        a, w = rounded(floats(a0 + num_rows * lda, 2)), rounded(floats(w0 + depth * ldw, 2))
        given = pairs(a).reshape(-1), pairs(w).reshape(-1)
        for adds in (0, 1):
            before = floats(c0 + num_rows * ldc + 3)
            c = before.copy()
            multiply(
                shape,
                given[0],
                a0,
                lda,
                num_rows,
                given[1],
                w0,
                ldw,
                apart,
                depth,
                c,
                c0,
                ldc,
                adds,
            )
            rows = a[a0:].reshape(num_rows, lda, 2)[:, :depth].astype(np.float64)
            weight = w[w0 + np.arange(depth)[:, None] * ldw + np.array(columns)]
            expected = before.copy()
            out = expected[c0 : c0 + num_rows * ldc].reshape(num_rows, ldc)
            out[:, :width] = np.einsum("mkp,knp->mn", rows, weight) + adds * out[:, :width]
            np.testing.assert_allclose(c, expected, atol=2e-5)
            out[:, :width] = c[c0 : c0 + num_rows * ldc].reshape(num_rows, ldc)[:, :width]
            assert np.array_equal(c, expected), "something beside the product was written"


def test_a_row_is_the_same_bits_in_a_tile_of_any_shape_and_beside_any_others() -> None:
    depth, num_rows = 23, 15
    a, w = round_rows(floats(num_rows, 2 * depth)), round_rows(floats(5 * depth, 64)).reshape(-1)
    size = depth * 32
    together = np.empty(num_rows * 160, np.float32)
    given = (w, 0, 32, size, depth)
    multiply_panels(a.reshape(-1), 0, depth, num_rows, *given, together, 0, 160, 5, 0)
    for row in range(num_rows):
        alone = np.empty(160, np.float32)
        for panel in range(5):
            at, column = panel * size, panel * 32
            multiply(WIDE, a[row], 0, depth, 1, w, at, 32, 0, depth, alone, column, 160, 0)
        assert np.array_equal(alone, together.reshape(num_rows, 160)[row])


@pytest.mark.parametrize(("num_out", "depth"), [(32, 48), (80, 47), (500, 1)])
def test_packed_weights_are_multiplied_in_panels_of_whole_pairs(num_out: int, depth: int) -> None:
    weight, x = rounded(floats(num_out, depth)), floats(11, depth)
    panels = pack_panels(weight, Storage.PAIRS)
    assert panels.shape == (-(-num_out // 32), -(-depth // 2), 32)
    assert num_products(panels) == panels.shape[0] * 32 * (depth + depth % 2)
    out = np.full((11, len(panels) * 32), np.nan, np.float32)
    middle = len(panels) // 2
    for first, end in ((0, middle), (middle, len(panels))):
        project(x, panels.reshape(-1), 0, out, out.shape[1], first, end, 0)
    np.testing.assert_allclose(out[:, :num_out], rounded(x) @ weight.T, atol=2e-5)
    assert not out[:, num_out:].any()


def attend_rounded(
    module: Any, query: Tensor, key: Tensor, value: Tensor, _: Any, scaling: float, **__: Any
) -> tuple[Tensor, None]:
    """Causal attention that rounds what it multiplies; [B, H, L, D] -> [B, L, H, D]"""
    group = query.shape[1] // key.shape[1]
    key, value = (x.bfloat16().float().repeat_interleave(group, 1) for x in (key, value))
    scores = (query * scaling).bfloat16().float() @ key.mT
    scores += torch.full_like(scores[0, 0], -torch.inf).triu(1)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    mixed = weights.bfloat16().float() @ value / weights.sum(-1, keepdim=True)
    return mixed.transpose(1, 2), None


def rounded_logits(model: Any, token_ids: Sequence[int]) -> Tensor:
    """Of float32 layers, of which whatever is multiplied is rounded: [L, V]"""
    AttentionInterface.register("rounded", attend_rounded)
    model.set_attn_implementation("rounded")
    handles = [
        module.register_forward_pre_hook(lambda _, args: (args[0].bfloat16().float(),))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", MAKERS)
def test_logits_are_those_of_transformers_with_all_factors_rounded_and_nothing_else(
    kind: str, stored: str, tmp_path: Path
) -> None:
    """Of most texts: a number halfway between two may be rounded otherwise, and what follows it."""
    path, texts = save_kind(tmp_path, kind, stored), make_texts([4] * 20)
    runner = load_runner(path, num_threads=1, dtype="bfloat16")
    model = load_runner(path, dtype="bfloat16").verifier.model
    model.float()  # of weights that were rounded as they were loaded
    num_close = 0
    for text, logits in zip(texts, read(runner, texts, [[(i, 4) for i in range(20)]]), strict=True):
        assert logits.dtype is torch.float32
        expected = rounded_logits(model, text.token_ids)
        num_close += torch.allclose(logits, expected, atol=1e-5, rtol=1e-5)
    assert num_close >= 12


@pytest.mark.parametrize("kind", MAKERS)
def test_texts_read_in_pieces_have_the_logits_of_transformers_but_for_rounding(
    kind: str, tmp_path: Path
) -> None:
    path, texts = save_kind(tmp_path, kind, "bfloat16"), make_texts(TEXTS)
    runner = load_runner(path, num_threads=1, dtype="bfloat16")
    for text, logits in zip(texts, read(runner, texts, PLAN), strict=True):
        expected = eager(path, text.token_ids)
        assert logits.shape == expected.shape
        change = (logits - expected).abs().mean()
        assert 0 < change < 8 * HALF_A_UNIT * expected.abs().mean()


def test_drafts_are_those_of_torch_but_for_rounding(tmp_path: Path) -> None:
    path = save_kind(tmp_path / "verifier", "qwen3", "bfloat16")
    drafter = save_draft_kind(tmp_path / "drafter", "bfloat16")
    runner, exact = (
        load_runner(path, drafter, num_threads=2, dtype="bfloat16"),
        load_runner(path, drafter),
    )
    texts = make_texts(LENGTHS)
    for one in (runner, exact):
        read(one, texts, MIXED)
    blocks = [block(texts[text], start, 8) for text, start in ANCHORS]
    found, expected = (one.draft(blocks, [7] * len(blocks)) for one in (runner, exact))
    change = (found - expected).abs().mean()
    assert 0 < change < 8 * HALF_A_UNIT * expected.abs().mean()


def test_all_matrices_are_kept_in_pairs_and_everything_else_in_float32(tmp_path: Path) -> None:
    runner = load_runner(save_kind(tmp_path, "qwen2", "float32"), dtype="bfloat16")
    runner.fuse_layers()
    packed = PackedModel(runner.verifier)
    weights = packed.layers.weights
    matrices = (weights.qkv, weights.out, weights.gate_up, weights.down, packed.head)
    assert {matrix.dtype for matrix in matrices} == {np.dtype(np.uint32)}
    assert weights.input_norm.dtype == weights.qkv_bias.dtype == np.float32
    embedded = (packed.embedding[[5, 7, 5]].astype(np.uint32) << 16).view(np.float32)
    own = runner.verifier.embed(torch.tensor([5, 7, 5]), 1.0)
    assert np.array_equal(embedded, own.detach().float().numpy())
