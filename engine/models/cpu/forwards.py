"""The kernels that are called from outside: a verifier's or diffusion model's forward, a draft."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from engine.models.cpu.chain import Drafts, Markov, draw
from engine.models.cpu.decoder import (
    Buffers,
    Cache,
    Ints,
    Shape,
    Weights,
    keep_heads,
    run_layers,
    write_logits,
)
from engine.models.cpu.draft_noise import add_noise
from engine.models.cpu.functions import normalise
from engine.models.cpu.kernel import inner_kernel, kernel
from engine.models.cpu.product import PANEL, Floats, Panels, project
from engine.models.cpu.rows import COUNT, lay_out, lay_out_drafts, unpack, wanted_rows
from engine.models.cpu.sampling import draw_tokens
from engine.models.cpu.team import begin, leave, meet, share


class Taps(NamedTuple):
    """Layers whose outputs a drafter reads, and what it makes of them: its context."""

    layers: Ints  # indices, [n]
    hidden: Floats  # [room, n * H]
    fc: Panels
    norm: Floats  # [H], empty where there is no drafter
    features: Floats  # [room, H]
    kv: Floats  # [room, 2 * Hkv * D]


class DraftSide(NamedTuple):
    """What a verifier's forward needs of the drafter."""

    shape: Shape
    weights: Weights
    cache: Cache
    taps: Taps


class Decoder(NamedTuple):
    """A model with its keys and values, and room for the rows of a forward."""

    shape: Shape
    weights: Weights
    cache: Cache
    embedding: Any  # [V, H], the bits of bfloat16 or float32
    scale: np.float32  # of embeddings
    head: Panels
    buffers: Buffers  # for as many rows as any forward yet
    blocks_per_page: int


class Reader(NamedTuple):
    """What is the same in every call of `read_text`."""

    model: Decoder
    side: DraftSide


class Drafter(NamedTuple):
    """What is the same in every call of `draft_blocks`."""

    model: Decoder
    scratch: int  # the first block of the drafts' own keys
    num_own: int  # of these blocks, for each draft
    markov: Markov
    sums: Floats  # [2, members, drafts at most], room for `Drafts.sums`
    tokens: Ints  # and for `Drafts.tokens`


class Head(NamedTuple):
    """The output head, and the rows of a forward that get logits."""

    panels: Panels
    chosen: Ints  # [R]
    logits: Floats  # [R, V], V a multiple of 32


@kernel
def read_text(member, held, numbers, logits, draws):
    """All layers, logits of some rows, their tokens, and the drafter's context of every row.

    `held` is a `Reader`, `numbers` the rows by `pack_rows`.
    """
    model, side = held.value.model, held.value.side
    lines, token_ids, pages, chosen = unpack(numbers)
    buffers, barrier = _enter(member, model, token_ids)
    rows = lay_out(lines, pages, model.blocks_per_page)
    head, taps = Head(model.head, chosen, logits), _part(side.taps, len(token_ids))
    tapped = taps.layers, taps.hidden
    barrier = run_layers(
        member, model.shape, model.weights, rows, model.cache, buffers, *tapped, barrier
    )
    barrier = write_logits(member, buffers.x, model.weights, head, barrier)
    first, end = share(draws.drawn.shape[0], member)
    draw_tokens(logits, draws, first, end)
    if taps.norm.shape[0]:
        barrier = _write_context(member, side, rows, taps, barrier)
    leave(member, barrier)


@kernel
def draft_blocks(member, held, numbers, logits, noise, draws):
    """The drafter over its blocks: logits of the first masks of each, and the drafts' tokens.

    `held` is a `Drafter`, `numbers` the blocks by `pack_drafts`. Into `draws.drawn` goes what is
    drawn of the logits and of `noise`, which is made on the way; nothing where it has no room.
    """
    drafter, model = held.value, held.value.model
    lines, token_ids, pages, lengths = unpack(numbers)
    width = lines[0, COUNT]
    buffers, barrier = _enter(member, model, token_ids)
    rows = lay_out_drafts(lines, pages, model.blocks_per_page, drafter.scratch, drafter.num_own)
    wanted, starts = wanted_rows(lengths, width)
    nothing, room = np.empty(0, np.int64), np.empty((0, 0), np.float32)
    barrier = run_layers(
        member, model.shape, model.weights, rows, model.cache, buffers, nothing, room, barrier
    )
    head = Head(model.head, wanted, logits)
    barrier = write_logits(member, buffers.x, model.weights, head, barrier)
    if noise.shape[0]:
        first, end = share(logits.shape[0], member)
        add_noise(logits, draws, first, end, noise)
        barrier = meet(member, barrier)
    if draws.drawn.shape[0]:
        anchors = token_ids[::width].copy()
        drafts = Drafts(
            draws.vocab_size, starts, anchors, noise, draws.drawn, drafter.sums, drafter.tokens
        )
        barrier = draw(member, logits, drafter.markov, drafts, barrier)
    leave(member, barrier)


@inner_kernel
def _enter(member, model, token_ids):
    """Embed the tokens, and let the helpers come.

    Returns room for a forward over them, and the number of its first barrier.
    """
    count, room = len(token_ids), model.buffers
    buffers = Buffers(room.x[:count], room.qkv[:count], room.mixed[:count], room.active[:count])
    if member.rank == 0:
        bits, shift = buffers.x.view(np.uint32), 16 if model.embedding.itemsize == 2 else 0
        for row in range(count):
            for i in range(bits.shape[1]):
                bits[row, i] = np.uint32(model.embedding[token_ids[row], i]) << np.uint32(shift)
        if model.scale != np.float32(1.0):
            for row in range(count):
                for i in range(bits.shape[1]):
                    buffers.x[row, i] *= model.scale
    return buffers, begin(member)


@inner_kernel
def _part(taps, count):
    """Room for so many rows."""
    return Taps(
        taps.layers, taps.hidden[:count], taps.fc, taps.norm, taps.features[:count], taps.kv[:count]
    )


@inner_kernel
def _write_context(member, side, rows, taps, barrier):
    """Keys and values of every drafter layer, from the tapped hidden states of every row."""
    shape, weights, cache = side.shape, side.weights, side.cache
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
