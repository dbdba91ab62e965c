"""The kernels that are called from outside: a verifier's or diffusion model's forward, a draft."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

import numpy as np

from engine.models.cpu.chain import draw
from engine.models.cpu.decoder import Ints, keep_heads, run_layers, write_logits
from engine.models.cpu.draft_noise import add_noise
from engine.models.cpu.functions import normalise
from engine.models.cpu.kernel import inner_kernel, kernel
from engine.models.cpu.product import PANEL, Floats, Panels, project
from engine.models.cpu.sampling import draw_tokens
from engine.models.cpu.team import begin, leave, meet, share


class Head(NamedTuple):
    """The output head, and the rows of a forward that get logits."""

    panels: Panels
    chosen: Ints  # [R]
    logits: Floats  # [R, V], V a multiple of 32


def new_head(panels: Panels, rows: Seq[int], vocab_size: int) -> Head:
    """Room for the logits of some rows."""
    width = -(-vocab_size // PANEL) * PANEL
    logits = np.empty((len(rows), width), np.float32)
    return Head(panels, np.array(rows, np.int64), logits)


class Taps(NamedTuple):
    """Layers whose outputs a drafter reads, and what it makes of them: its context."""

    layers: Ints  # indices, [n]
    hidden: Floats  # [T, n * H]
    fc: Panels
    norm: Floats  # [H], empty where there is no drafter
    features: Floats  # [T, H], room
    kv: Floats  # [T, 2 * Hkv * D], room


@kernel
def read_text(
    member,
    shape,
    weights,
    rows,
    cache,
    buffers,
    head,
    taps,
    draft_shape,
    draft_weights,
    draft_cache,
    draws,
):
    """All layers, logits of some rows, their tokens, and the drafter's context of every row."""
    tapped = taps.layers, taps.hidden
    barrier = begin(member)
    barrier = run_layers(member, shape, weights, rows, cache, buffers, *tapped, barrier)
    barrier = write_logits(member, buffers.x, weights, head, barrier)
    first, end = share(draws.drawn.shape[0], member)
    draw_tokens(head.logits, draws, first, end)
    if taps.norm.shape[0]:
        barrier = _write_context(
            member, draft_shape, draft_weights, rows, draft_cache, taps, barrier
        )
    leave(member, barrier)


@kernel
def draft_blocks(member, shape, weights, rows, cache, buffers, head, markov, drafts, draws):
    """The drafter over its blocks: logits of the wanted masks, and the tokens of the drafts.

    `drafts.noise` is made on the way. Of a drafter without a Markov head None is drawn.
    """
    barrier = begin(member)
    nothing, room = np.empty(0, np.int64), np.empty((0, 0), np.float32)
    barrier = run_layers(member, shape, weights, rows, cache, buffers, nothing, room, barrier)
    barrier = write_logits(member, buffers.x, weights, head, barrier)
    if markov is not None:
        if drafts.noise.shape[0]:
            first, end = share(head.logits.shape[0], member)
            add_noise(head.logits, draws, first, end, drafts.noise)
            barrier = meet(member, barrier)
        barrier = draw(member, head.logits, markov, drafts, barrier)
    leave(member, barrier)


@inner_kernel
def _write_context(member, shape, weights, rows, cache, taps, barrier):
    """Keys and values of every drafter layer, from the tapped hidden states of every row."""
    hidden = shape.hidden
    first, end = share(hidden // PANEL, member)
    project(taps.hidden, taps.fc, 0, taps.features, hidden, first, end, 0)
    barrier = meet(member, barrier)
    context = np.empty_like(taps.features)
    normalise(taps.features, taps.norm, weights.eps, context)
    q_size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    first, end = share(2 * kv_size // PANEL, member)
    for layer in range(shape.num_layers):
        start = (layer * (q_size + 2 * kv_size) + q_size) // PANEL
        project(context, weights.qkv, start, taps.kv, 2 * kv_size, first, end, 0)
        barrier = meet(member, barrier)
        keep_heads(member, layer, shape, weights, rows, cache, taps.kv, 0, kv_size)
        barrier = meet(member, barrier)
    return barrier
