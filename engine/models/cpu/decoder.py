"""A whole forward of a Llama-like decoder as one call: no operator is dispatched in between."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engine.models.cpu.attention import BLOCK, attend, keep
from engine.models.cpu.attention_tiles import AT_ONCE
from engine.models.cpu.bfloat16 import factors_for
from engine.models.cpu.functions import gate, normalise, place_head
from engine.models.cpu.kernel import inner_kernel
from engine.models.cpu.lanes import scale_into
from engine.models.cpu.product import PANEL, Floats, Panels, multiply_panels, project
from engine.models.cpu.team import meet, share
from engine.models.cpu.tile import LANES

Ints = npt.NDArray[np.int64]
Kept = npt.NDArray[np.float32] | npt.NDArray[np.uint32]
"""Keys or values, as floats or as pairs of bfloat16 (`attention.py`)."""

_MAX_ROWS = 16  # of a span that attend together: their scores stay in the cache


class Shape(NamedTuple):
    """Sizes of a decoder."""

    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate: int  # a multiple of 32


class Weights(NamedTuple):
    """A decoder's weights; matrices packed, of all layers one after the other, and flat."""

    input_norm: Floats  # [L, H]
    post_norm: Floats  # [L, H]
    final_norm: Floats  # [H]
    head_norm: Floats  # [L, Hq + Hkv, D], or D = 0 where there is none
    qkv: Panels
    qkv_bias: Floats  # [L, (Hq + 2 Hkv) * D], or [L, 0]
    out: Panels
    gate_up: Panels  # a panel of gates, one of ups, and so on
    down: Panels
    scales: Floats  # [L], of the scores
    windows: Ints  # [L], 0: all is seen
    eps: np.float32


class Rows(NamedTuple):
    """What a forward runs over: T rows of S spans."""

    positions: Ints  # [T]
    places: Ints  # [T], where keys and values go, as a position along the span's blocks
    ends: Ints  # [T], how many places each row sees
    origins: Ints  # [T], from where each row's window looks back
    spans: Ints  # [S + 1], the spans' first rows
    tables: Ints  # [S + 1], where in `blocks` each span's begin
    blocks: Ints  # the spans' blocks of keys and values
    gaps: Ints  # [S, 2], places that nobody sees


class Buffers(NamedTuple):
    """Room for what the threads of a team hand each other, [T, ...] each."""

    x: Floats  # embeddings in, the last layer's output out
    qkv: Floats
    mixed: Floats
    active: Floats


def new_buffers(num_rows: int, shape: Shape) -> Buffers:
    """Room for a forward over so many rows."""
    q_size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    sizes = (shape.hidden, q_size + 2 * kv_size, q_size, shape.intermediate)
    return Buffers(*(np.empty((num_rows, size), np.float32) for size in sizes))


class Cache(NamedTuple):
    """Keys and values of all layers, [L, ...] each; and the rotation, [positions, D / 2]."""

    keys: Kept
    values: Kept
    cos: Floats
    sin: Floats


@inner_kernel
def run_layers(member, shape, weights, rows, cache, buffers, taps, tapped, barrier):
    """All layers over buffers.x, in place; what the layers `taps` put out goes to `tapped`.

    tapped: [T, taps * H]. Returns the number of the next barrier.
    """
    x, hidden = buffers.x, shape.hidden
    num_rows = x.shape[0]
    qkv_size = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    normed = np.empty((num_rows, hidden), np.float32)
    for layer in range(shape.num_layers):
        normalise(x, weights.input_norm[layer], weights.eps, normed)
        _project(member, normed, weights.qkv, layer, qkv_size, buffers.qkv, 0)
        barrier = meet(member, barrier)
        _keep(member, layer, shape, weights, rows, cache, buffers.qkv)
        barrier = meet(member, barrier)  # spans of one sequence read each other's keys
        _attend(member, layer, shape, weights, rows, cache, buffers)
        barrier = meet(member, barrier)
        _project(member, buffers.mixed, weights.out, layer, hidden, x, 1)
        barrier = meet(member, barrier)
        normalise(x, weights.post_norm[layer], weights.eps, normed)
        _feed_forward(member, normed, layer, shape, weights.gate_up, buffers.active)
        barrier = meet(member, barrier)
        _project(member, buffers.active, weights.down, layer, hidden, x, 1)
        barrier = meet(member, barrier)
        for i in range(taps.shape[0]):
            if taps[i] == layer:
                first, end = share(num_rows, member)
                for t in range(first, end):
                    for column in range(hidden):
                        tapped[t, i * hidden + column] = x[t, column]
    return barrier


@inner_kernel
def write_logits(member, x, weights, head, barrier):
    """The output head over the normed rows that are chosen of x; returns the next barrier."""
    normed = np.empty((head.chosen.shape[0], x.shape[1]), np.float32)
    normalise(x[head.chosen], weights.final_norm, weights.eps, normed)
    _project(member, normed, head.panels, 0, head.logits.shape[1], head.logits, 0)
    return meet(member, barrier)


@inner_kernel
def _project(member, x, w, layer, num_out, out, adds):
    num_panels = num_out // PANEL
    first, end = share(num_panels, member)
    project(x, w, layer * num_panels, out, num_out, first, end, adds)


@inner_kernel
def _feed_forward(member, normed, layer, shape, gate_up, active):
    """silu(gate) * up into `active` [T, I], two panels at a time."""
    factors = factors_for(normed, gate_up)
    num_rows, depth = factors.shape
    pair = np.empty((num_rows, 2 * PANEL), np.float32)
    a, c = factors.reshape(-1), pair.reshape(-1)
    size, num_panels = depth * PANEL, shape.intermediate // PANEL
    pairs, out = pair.reshape(num_rows, 2, PANEL), active.reshape(num_rows, num_panels, PANEL)
    first, end = share(num_panels, member)
    for panel in range(first, end):
        start = 2 * (layer * num_panels + panel) * size
        multiply_panels(
            a, 0, depth, num_rows, gate_up, start, PANEL, size, depth, c, 0, 2 * PANEL, 2, 0
        )
        gate(pairs, panel, out)


@inner_kernel
def _keep(member, layer, shape, weights, rows, cache, qkv):
    """Add the biases, and keep all keys and values."""
    q_size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    biases = weights.qkv_bias[layer]
    if biases.shape[0]:
        _add_biases(member, shape, rows, biases, qkv)
    keep_heads(member, layer, shape, weights, rows, cache, qkv, q_size, q_size + kv_size)


@inner_kernel
def _add_biases(member, shape, rows, biases, qkv):
    """Those of a span's head of keys and of its queries at a time, as they are kept and read."""
    size, group = shape.head_dim, shape.num_heads // shape.num_kv_heads
    begin, end = share((rows.spans.shape[0] - 1) * shape.num_kv_heads, member)
    for unit in range(begin, end):
        span, head = unit // shape.num_kv_heads, unit % shape.num_kv_heads
        k0 = (shape.num_heads + head) * size
        v0 = k0 + shape.num_kv_heads * size
        for t in range(rows.spans[span], rows.spans[span + 1]):
            for at in range(head * group * size, (head + 1) * group * size):
                qkv[t, at] += biases[at]
            for i in range(size):
                qkv[t, k0 + i] += biases[k0 + i]
                qkv[t, v0 + i] += biases[v0 + i]


@inner_kernel
def _attend(member, layer, shape, weights, rows, cache, buffers):
    """Attend with the queries that share keys: a span's head of keys at a time."""
    size, group = shape.head_dim, shape.num_heads // shape.num_kv_heads
    num_rows = _MAX_ROWS * group
    queries = np.empty((num_rows, size), np.float32)
    out = np.empty((num_rows, size), np.float32)
    lows, ends = np.empty(num_rows, np.int64), np.empty(num_rows, np.int64)
    num_scores = num_rows * max(size, rows.ends.max() + (AT_ONCE + 1) * BLOCK)
    scores, room = np.empty(num_scores, np.float32), np.empty(num_scores, cache.keys.dtype)
    window, scale = weights.windows[layer], weights.scales[layer]
    norms = weights.head_norm[layer].reshape(-1)
    qkv, mixed = buffers.qkv.reshape(-1), buffers.mixed.reshape(-1)
    qkv_size, mixed_size = buffers.qkv.shape[1], buffers.mixed.shape[1]
    cos, sin = cache.cos.reshape(-1), cache.sin.reshape(-1)
    placed, found = queries.reshape(-1), out.reshape(-1)
    keys, values = cache.keys[layer], cache.values[layer]
    begin, end = share((rows.spans.shape[0] - 1) * shape.num_kv_heads, member)
    for unit in range(begin, end):
        span, head = unit // shape.num_kv_heads, unit % shape.num_kv_heads
        blocks = rows.blocks[rows.tables[span] : rows.tables[span + 1]]
        for start in range(rows.spans[span], rows.spans[span + 1], _MAX_ROWS):
            count = 0
            for t in range(start, min(start + _MAX_ROWS, rows.spans[span + 1])):
                at = rows.positions[t]
                for g in range(head * group, (head + 1) * group):
                    place_head(
                        qkv, t * qkv_size + g * size, size, norms, g * size, weights.eps, cos, sin,
                        at, scale, placed, count * size,
                    )  # fmt: skip
                    lows[count] = max(rows.origins[t] - window + 1, 0) if window else 0
                    ends[count] = rows.ends[t]
                    count += 1
            attend(
                count, queries, lows, ends, rows.gaps[span], blocks, head, shape.num_kv_heads, keys,
                values, scores, room, out,
            )  # fmt: skip
            for i in range(count):
                t, g = start + i // group, head * group + i % group
                for at in range(0, size, LANES):
                    place = t * mixed_size + g * size + at
                    scale_into(found, i * size + at, np.float32(1.0), mixed, place)


@inner_kernel
def keep_heads(member, layer, shape, weights, rows, cache, projected, keys_at, values_at):
    """Write keys and values of all rows, a span's head at a time.

    Those of head 0 begin at columns keys_at and values_at of `projected`.
    """
    size, key = shape.head_dim, np.empty(shape.head_dim, np.float32)
    norms, eps, one = weights.head_norm[layer].reshape(-1), weights.eps, np.float32(1.0)
    cos, sin = cache.cos.reshape(-1), cache.sin.reshape(-1)
    keys, values = cache.keys[layer], cache.values[layer]
    flat, width = projected.reshape(-1), projected.shape[1]
    begin, end = share((rows.spans.shape[0] - 1) * shape.num_kv_heads, member)
    for unit in range(begin, end):
        span, head = unit // shape.num_kv_heads, unit % shape.num_kv_heads
        norm, first = (shape.num_heads + head) * size, rows.tables[span]
        for t in range(rows.spans[span], rows.spans[span + 1]):
            k0 = t * width + keys_at + head * size
            v0 = t * width + values_at + head * size
            place_head(flat, k0, size, norms, norm, eps, cos, sin, rows.positions[t], one, key, 0)
            place = rows.places[t]
            slot = rows.blocks[first + place // BLOCK] * BLOCK + place % BLOCK
            keep(key, flat, v0, size, slot, head, shape.num_kv_heads, keys, values)
