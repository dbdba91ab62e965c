"""What the CPU kernels are made of, against NumPy in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.models.cpu.attention import attend, keep
from engine.models.cpu.functions import exponential, gate, normalise, place_head, soften
from engine.models.cpu.kernel import kernel
from engine.models.cpu.product import (
    Floats,
    Storage,
    is_bfloat16,
    multiply,
    multiply_panels,
    pack_panels,
    project,
)
from engine.models.cpu.tile import TWO_WIDE, WIDE
from tests.engine.kernel_models import needs_bfloat16_products

RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> Floats:
    return RANDOM.standard_normal(shape).astype(np.float32)


def bfloat16(array: Floats) -> Floats:
    """Its upper halves, as float32."""
    return (array.view(np.uint32) & 0xFFFF0000).view(np.float32)


def halves(array: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    return (array.view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("is_half", [True, False], ids=["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("shape", "starts"),
    [(WIDE, [0, 16]), (TWO_WIDE, [0, 16, 37, 53])],
)
def test_a_product_of_any_number_of_rows_is_numpys_and_touches_nothing_beside_it(
    shape: int, starts: list[int], is_half: bool
) -> None:
    """starts: where the columns of each vector begin, the first half's at 0."""
    depth, lda, ldw, ldc, a0, w0, c0 = 41, 45, 90, 69, 3, 38, 5
    apart, width = starts[len(starts) // 2], 16 * len(starts)
    columns = [start + i for start in starts for i in range(16)]
    for num_rows in range(18):
        a, w = floats(a0 + num_rows * lda), bfloat16(floats(w0 + depth * ldw))
        for adds in (0, 1):
            before = floats(c0 + num_rows * ldc + 3)
            c = before.copy()
            given = halves(w) if is_half else w
            multiply(shape, a, a0, lda, num_rows, given, w0, ldw, apart, depth, c, c0, ldc, adds)
            rows = a[a0:].reshape(num_rows, lda)[:, :depth].astype(np.float64)
            expected = before.copy()
            out = expected[c0 : c0 + num_rows * ldc].reshape(num_rows, ldc)
            weight = w[w0 + np.arange(depth)[:, None] * ldw + np.array(columns)]
            out[:, :width] = rows @ weight + adds * out[:, :width]
            np.testing.assert_allclose(c, expected, atol=2e-5)
            out[:, :width] = c[c0 : c0 + num_rows * ldc].reshape(num_rows, ldc)[:, :width]
            assert np.array_equal(c, expected), "something beside the product was written"


@pytest.mark.parametrize("num_rows", [1, 5, 11])
def test_a_column_is_the_same_bits_in_a_tile_of_any_shape(num_rows: int) -> None:
    depth, a = 41, floats(num_rows * 41)
    w = bfloat16(floats(5 * depth * 32))
    together = np.empty(num_rows * 160, np.float32)
    size = depth * 32
    multiply_panels(a, 0, depth, num_rows, w, 0, 32, size, depth, together, 0, 160, 5, 0)
    alone = np.empty(num_rows * 160, np.float32)
    for panel in range(5):
        start, column = panel * size, panel * 32
        multiply(WIDE, a, 0, depth, num_rows, w, start, 32, 0, depth, alone, column, 160, 0)
    assert np.array_equal(alone, together)


@pytest.mark.parametrize("num_out", [32, 64, 80, 500])
def test_packed_weights_are_multiplied_in_panels_and_padded_with_zeros(num_out: int) -> None:
    weight, x = bfloat16(floats(num_out, 48)), floats(11, 48)
    outs = []
    for storage in (Storage.HALVES, Storage.FLOATS):
        panels = pack_panels(weight, storage)
        assert panels.shape == (-(-num_out // 32), 48, 32)
        out = np.full((11, len(panels) * 32), np.nan, np.float32)
        middle = len(panels) // 2
        for first, end in ((0, middle), (middle, len(panels))):
            project(x, panels.reshape(-1), 0, out, out.shape[1], first, end, 0)
        np.testing.assert_allclose(out[:, :num_out], x @ weight.T, atol=2e-5)
        assert not out[:, num_out:].any()
        outs.append(out)
    assert np.array_equal(*outs), "half of the bytes must say the same"


def test_bfloat16_is_told_from_what_would_lose_bits() -> None:
    exact = bfloat16(floats(3, 5))
    exact[0, :4] = 0.0, -0.0, np.inf, 2.0**-133
    assert is_bfloat16(exact)
    widened = (halves(exact).astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(widened.view(np.uint32), exact.view(np.uint32))
    exact[2, 4] = np.nextafter(exact[2, 4], np.float32(9))
    assert not is_bfloat16(exact)
    assert is_bfloat16(exact[:, :4]), "though its rows are not side by side"


def test_the_exponential_is_right_to_some_units_in_the_last_place_and_held_at_its_ends() -> None:
    xs = np.linspace(-87, 88, 4001).astype(np.float32)
    # SwiGLU takes it in vectors: silu(-x) * -1 / x = 1 / (1 + e ** x).
    out = np.zeros((1, 3, 32), np.float32)
    for i in range(0, 4000, 32):
        part = xs[i : i + 32]
        gate(np.stack((-part, np.ones(32, np.float32)))[None], 1, out)
        np.testing.assert_allclose(
            out[0, 1], -part / (1 + np.exp(part.astype(np.float64))), rtol=1e-6
        )
    alone = np.array([exponential(x) for x in xs])
    np.testing.assert_allclose(alone, np.exp(xs.astype(np.float64)), rtol=5e-7)
    assert exponential(np.float32(-3e38)) == exponential(np.float32(-87)) > 0
    assert exponential(np.float32(3e38)) == exponential(np.float32(88)) < np.inf


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 100, 1000])
def test_softmax_stands_scores_of_any_size(count: int) -> None:
    for scale, shift in ((1.0, 0.0), (30.0, -1000.0), (1e30, 0.0)):
        scores = floats(count) * np.float32(scale) + np.float32(shift)
        exact = np.exp((scores - scores.max()).astype(np.float64))
        total = soften(scores)
        np.testing.assert_allclose(scores, exact, rtol=1e-5, atol=1e-30)
        np.testing.assert_allclose(total, exact.sum(), rtol=1e-5)


def test_norms_and_rotations_are_the_textbooks() -> None:
    x, weight, eps = floats(5, 96), floats(96), np.float32(1e-5)
    out = np.empty_like(x)
    normalise(x, weight, eps, out)
    normed = x / np.sqrt((x.astype(np.float64) ** 2).mean(1, keepdims=True) + eps) * weight
    np.testing.assert_allclose(out, normed, rtol=2e-6)
    cos, sin, head = floats(48), floats(48), np.empty(96, np.float32)
    for norm, row in ((weight, normed[0]), (weight[:0], x[0])):
        place_head(x.reshape(-1), 0, 96, norm, 0, eps, cos, sin, 0, np.float32(0.3), head, 0)
        first, second = row[:48], row[48:]
        expected = np.concatenate((first * cos - second * sin, second * cos + first * sin)) * 0.3
        np.testing.assert_allclose(head, expected, rtol=1e-5, atol=1e-6)


@kernel
def keep_all(k, v, slots, head, num_heads, keys, values):  # type: ignore[no-untyped-def]
    """Keys and values [N, D] of a head, each to its slot."""
    for i in range(len(slots)):
        size = k.shape[1]
        keep(k[i], v.reshape(-1), i * size, size, slots[i], head, num_heads, keys, values)


IN_PAIRS = pytest.mark.parametrize(
    "in_pairs", [False, pytest.param(True, marks=needs_bfloat16_products)], ids=["floats", "pairs"]
)


def attended(
    queries: Floats,
    highs: Any,
    gap: Any,
    blocks: Any,
    head: int,
    heads: int,
    keys: Any,
    values: Any,
) -> Floats:
    num_rows, size = queries.shape
    out, lows = np.empty((num_rows, size), np.float32), np.zeros(num_rows, np.int64)
    num_scores = num_rows * max(size, (len(blocks) + 3) * 16)
    scores, room = np.empty(num_scores, np.float32), np.empty(num_scores, keys.dtype)
    attend(
        *(num_rows, queries, lows, highs, gap, blocks, head, heads),
        *(keys, values, scores, room, out),
    )
    return out


def tolerance_of(in_pairs: bool) -> float:
    return 2.0**-8 if in_pairs else 1e-4  # the softmax's numerators are rounded


@IN_PAIRS
@pytest.mark.parametrize("stale", [1.0, 100.0])
def test_attention_sees_neither_beyond_its_ends_nor_what_is_left_over_in_a_gap(
    stale: float, in_pairs: bool
) -> None:
    """A stale key may fit a query far better than all that are seen."""
    size, heads, blocks = 64, 2, np.array([4, 1, 6])
    k, v, queries = (bfloat16(floats(num, size)) for num in (48, 48, 3))
    queries *= np.float32(4.0)
    kept = [floats(8 * heads * size * 16) * np.float32(stale) for _ in range(2)]
    keys, values = (halves(x).view(np.uint32) if in_pairs else x for x in kept)
    written = np.array([*range(21), *range(32, 40)])
    keep_all(
        k[written], v[written], blocks[written // 16] * 16 + written % 16, 1, heads, keys, values
    )
    highs, gap = np.array([40, 38, 33]), np.array([21, 32])
    out = attended(queries, highs, gap, blocks, 1, heads, keys, values)
    tolerance = tolerance_of(in_pairs)
    for n in range(3):
        seen = [*range(21), *range(32, int(highs[n]))]
        weights = np.exp(k[seen].astype(np.float64) @ queries[n])
        expected = weights @ v[seen] / weights.sum()
        np.testing.assert_allclose(out[n], expected, rtol=10 * tolerance, atol=tolerance)


@IN_PAIRS
@pytest.mark.parametrize("size", [32, 64, 96, 128])
def test_a_row_attends_alike_beside_any_others_over_any_number_of_blocks(
    size: int, in_pairs: bool
) -> None:
    heads, gap = 3, np.zeros(2, np.int64)
    blocks = RANDOM.permutation(9)
    k, v, queries = (bfloat16(floats(num, size)) for num in (144, 144, 15))
    kept = [np.zeros(9 * heads * size * 16, np.float32) for _ in range(2)]
    keys, values = (halves(x).view(np.uint32) if in_pairs else x for x in kept)
    places = np.arange(144)
    keep_all(k, v, blocks[places // 16] * 16 + places % 16, 2, heads, keys, values)
    tolerance = tolerance_of(in_pairs)
    for end in range(1, 145, 13):
        highs = np.maximum(end - np.arange(15), 1)
        given = (blocks, 2, heads, keys, values)
        together = attended(queries, highs, gap, *given)
        for n, high in enumerate(highs):
            scores = k[:high].astype(np.float64) @ queries[n]
            weights = np.exp(scores - scores.max())
            expected = weights @ v[:high] / weights.sum()
            np.testing.assert_allclose(together[n], expected, rtol=10 * tolerance, atol=tolerance)
            alone = attended(queries[n : n + 1], highs[n : n + 1], gap, *given)
            assert np.array_equal(alone[0], together[n])
