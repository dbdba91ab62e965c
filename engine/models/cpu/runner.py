"""Runs spans through the kernels: what `ModelRunner` does with torch, on a CPU."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from engine.models.causal_lm import CausalLM
from engine.models.cpu.attention import BLOCK
from engine.models.cpu.chain import draw_chains
from engine.models.cpu.decoder import Buffers, Cache, Shape, Weights
from engine.models.cpu.forwards import Head, Taps, draft_blocks, read_text
from engine.models.cpu.packed_model import (
    Moved,
    PackedLayers,
    PackedModel,
    are_bfloat16,
    can_pack,
    can_pack_drafter,
)
from engine.models.cpu.product import PANEL, Floats, Panels, is_bfloat16, pack_panels
from engine.models.cpu.rows import num_scratch_blocks, pack_drafts, pack_rows, reach
from engine.models.cpu.team import Team
from engine.models.dflash import DFlashDrafter
from engine.models.diffusion_lm import DiffusionLM
from engine.models.packing import Span

_MAX_DRAFTS = 64  # a forward; the keys of so many blocks have room behind the context's


class _DraftSide(NamedTuple):
    """What a verifier's forward needs of the drafter."""

    shape: Shape
    weights: Weights
    cache: Cache


class KernelRunner:
    """All models of an engine; each has its own keys and values behind one page table."""

    def __init__(
        self,
        verifier: CausalLM | None,
        drafter: DFlashDrafter | None,
        diffusion: DiffusionLM | None,
        num_pages: int,
        page_size: int,
        num_threads: int,
    ) -> None:
        self.team = Team(num_threads)
        room = (num_pages, page_size, self.team)
        self._verifier = None if verifier is None else ModelKernels(PackedModel(verifier), *room)
        self._drafter: DrafterKernels | None = None
        if drafter is not None:
            assert self._verifier is not None
            self._drafter = DrafterKernels(drafter, self._verifier.model, *room)
        self._diffusion = None
        if diffusion is not None:
            self._diffusion = ModelKernels(PackedModel(diffusion.backbone), *room)

    @property
    def num_bytes(self) -> int:
        """Of all packed weights."""
        models = (self._verifier, self._drafter, self._diffusion)
        return sum(model.num_bytes for model in models if model is not None)

    def page_planes(self, num_pages: int) -> list[Tensor]:
        """The verifier's and the drafter's keys and values: [pages, bytes] uint8 each."""
        parts = (self._verifier, self._drafter)
        return [plane for part in parts if part for plane in part.page_planes(num_pages)]

    def verify(self, spans: Seq[Span], logit_rows: Seq[int]) -> Tensor:
        assert self._verifier is not None
        return self._verifier.forward(spans, logit_rows, self._drafter)

    def draft(self, blocks: Seq[Span], lengths: Seq[int]) -> Tensor:
        assert self._drafter is not None
        return self._drafter.draft(blocks, lengths)

    def draw_chained(self, scores: Tensor, lengths: Seq[int], anchors: Seq[int]) -> list[list[int]]:
        assert self._drafter is not None
        return self._drafter.draw_chained(scores, lengths, anchors)

    def denoise(self, spans: Seq[Span], logit_rows: Seq[int]) -> Tensor:
        assert self._diffusion is not None
        return self._diffusion.forward(spans, logit_rows)


def why_not(
    verifier: CausalLM | None,
    drafter: DFlashDrafter | None,
    diffusion: DiffusionLM | None,
    page_size: int,
) -> str | None:
    """Why the kernels cannot run these models; None where they can."""
    if page_size % BLOCK:
        return f"pages of {page_size} tokens are no multiple of {BLOCK}"
    models = [verifier, None if diffusion is None else diffusion.backbone]
    for model in models:
        if model is not None and not can_pack(model):
            return f"{model.model_type} is computed by other layers than they know"
    if drafter is not None and not can_pack_drafter(drafter):
        return "the drafter has windows, biases, or sizes that they do not know"
    return None


class ModelKernels:
    """One model's forwards, and its keys and values."""

    def __init__(self, model: PackedModel, num_pages: int, page_size: int, team: Team) -> None:
        self.model = model
        self._page_size, self._team = page_size, team
        self._kept = model.layers.new_cache(num_pages * page_size // BLOCK)
        # numba compiles for the types that it is given, so a missing drafter is an empty one.
        self._no_side = _DraftSide(model.layers.shape, model.layers.weights, self._cache(1))

    @property
    def num_bytes(self) -> int:
        return self.model.layers.num_bytes + self.model.head.nbytes

    def page_planes(self, num_pages: int) -> list[Tensor]:
        return _page_planes(self._kept, num_pages, self._page_size, self.model.layers.shape)

    def forward(
        self, spans: Seq[Span], logit_rows: Seq[int], drafter: DrafterKernels | None = None
    ) -> Tensor:
        """One packed forward, the drafter's context with it; logits of some rows, [R, V]."""
        rows = pack_rows(spans, self._page_size)
        token_ids = [token_id for span in spans for token_id in span.token_ids]
        num_positions = max(map(reach, spans))
        side = self._no_side if drafter is None else drafter.side(num_positions)
        taps = _no_taps(self.model) if drafter is None else drafter.taps(len(token_ids))
        head = new_head(self.model.head, logit_rows, self.model.vocab_size)
        self._team.run(
            read_text,
            self.model.layers.shape,
            self.model.layers.weights,
            rows,
            self._cache(num_positions),
            new_buffers(self.model.embedding[token_ids], self.model.layers.shape),
            head,
            taps,
            *side,
            num_products=len(token_ids) * self.model.layers.num_weights
            + head.logits.shape[0] * len(self.model.head),
        )
        return torch.from_numpy(head.logits)[:, : self.model.vocab_size]

    def _cache(self, num_positions: int) -> Cache:
        return self.model.layers.with_rotation(self._kept, num_positions)


class DrafterKernels:
    """A DFlash drafter's forwards, and the keys and values of its context."""

    def __init__(
        self, drafter: DFlashDrafter, model: PackedModel, num_pages: int, page_size: int, team: Team
    ) -> None:
        config = drafter.config
        layers = list(drafter.layers)
        rope: Any = layers[0].rope
        is_half = are_bfloat16(layers, drafter.fc.weight)
        self.packed = PackedLayers(layers, drafter.norm.weight, rope.tables, as_bfloat16=is_half)
        self._model, self._team, self._page_size = model, team, page_size
        self._scale = np.float32(config.input_embedding_scale)
        self._scratch = num_pages * page_size // BLOCK
        own = _MAX_DRAFTS * num_scratch_blocks(config.block_size)
        self._kept = self.packed.new_cache(self._scratch + own)
        self._tapped = np.array(config.target_layer_ids, np.int64)
        self._fc = self.packed.pack(drafter.fc.weight.detach().numpy()).reshape(-1)
        self._norm = drafter.hidden_norm.weight.detach().numpy()
        self._markov: tuple[Floats, Panels] | None = None
        if drafter.markov is not None:
            output = drafter.markov.lm_head.weight.detach().numpy()
            half = is_bfloat16(output)
            self._markov = (
                drafter.markov.embed_previous.weight.detach().numpy(),
                pack_panels(output, as_bfloat16=half).reshape(-1),
            )
        drafter.layers = nn.ModuleList([Moved()])

    @property
    def num_bytes(self) -> int:
        markov = sum(weight.nbytes for weight in self._markov or ())
        return self.packed.num_bytes + self._fc.nbytes + markov

    def page_planes(self, num_pages: int) -> list[Tensor]:
        return _page_planes(self._kept, num_pages, self._page_size, self.packed.shape)

    def side(self, num_positions: int) -> _DraftSide:
        cache = self.packed.with_rotation(self._kept, num_positions)
        return _DraftSide(self.packed.shape, self.packed.weights, cache)

    def taps(self, num_rows: int) -> Taps:
        shape = self.packed.shape
        kv_size = 2 * shape.num_kv_heads * shape.head_dim
        sizes = (len(self._tapped) * shape.hidden, shape.hidden, kv_size)
        hidden, features, kv = (np.empty((num_rows, size), np.float32) for size in sizes)
        return Taps(self._tapped, hidden, self._fc, self._norm, features, kv)

    def draft(self, blocks: Seq[Span], lengths: Seq[int]) -> Tensor:
        """One drafter forward over whole blocks: logits of the first masks of each."""
        parts = [
            self._draft(blocks[i : i + _MAX_DRAFTS], lengths[i : i + _MAX_DRAFTS])
            for i in range(0, len(blocks), _MAX_DRAFTS)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def draw_chained(self, scores: Tensor, lengths: Seq[int], anchors: Seq[int]) -> list[list[int]]:
        """scores: [R, V], noise included -> the tokens of each draft, one after the other."""
        assert self._markov is not None
        starts = np.array([0, *accumulate(lengths)])
        drawn = np.empty(len(scores), np.int64)
        flat = np.ascontiguousarray(scores.numpy())
        args = (flat, starts, np.array(anchors), *self._markov, drawn)
        self._team.run(draw_chains, *args, num_products=len(scores) * len(self._markov[1]))
        token_ids: list[int] = drawn.tolist()
        return [token_ids[first:end] for first, end in pairwise(starts.tolist())]

    def _draft(self, blocks: Seq[Span], lengths: Seq[int]) -> Tensor:
        rows = pack_drafts(blocks, self._page_size, self._scratch)
        width = len(blocks[0].token_ids)
        token_ids = [token_id for block in blocks for token_id in block.token_ids]
        wanted = [i * width + k for i, length in enumerate(lengths) for k in range(1, length + 1)]
        head = new_head(self._model.head, wanted, self._model.vocab_size)
        x = self._model.embedding[token_ids] * self._scale
        cache = self.packed.with_rotation(self._kept, max(block.end for block in blocks))
        self._team.run(
            draft_blocks,
            self.packed.shape,
            self.packed.weights,
            rows,
            cache,
            new_buffers(x, self.packed.shape),
            head,
            num_products=len(x) * self.packed.num_weights + len(wanted) * len(self._model.head),
        )
        return torch.from_numpy(head.logits)[:, : self._model.vocab_size]


def _page_planes(
    kept: tuple[Floats, Floats], num_pages: int, page_size: int, shape: Shape
) -> list[Tensor]:
    """Views of keys and values, of each layer [pages, bytes]; what lies behind them is left out."""
    size = num_pages * page_size * shape.num_kv_heads * shape.head_dim
    layers = (layer for memory in kept for layer in memory)
    return [torch.from_numpy(x[:size]).view(num_pages, -1).view(torch.uint8) for x in layers]


def new_head(panels: Panels, rows: Seq[int], vocab_size: int) -> Head:
    """Room for the logits of some rows."""
    width = -(-vocab_size // PANEL) * PANEL
    logits = np.empty((len(rows), width), np.float32)
    return Head(panels, np.array(rows, np.int64), logits)


def new_buffers(x: Floats, shape: Shape) -> Buffers:
    """Room for a forward over the rows x."""
    q_size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    sizes = (q_size + 2 * kv_size, q_size, shape.intermediate)
    return Buffers(x, *(np.empty((len(x), size), np.float32) for size in sizes))


def _no_taps(model: PackedModel) -> Taps:
    none, room = np.empty(0, np.float32), np.empty((0, 0), np.float32)
    return Taps(np.empty(0, np.int64), room, model.head[:0], none, room, room)
