"""Runs a drafter's blocks through the kernels, and draws their tokens."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from engine.models.cpu.attention import BLOCK
from engine.models.cpu.chain import Drafts, Markov, draw_chains
from engine.models.cpu.decoder import Cache, Shape, Weights, new_buffers
from engine.models.cpu.draws import no_draws, part_of
from engine.models.cpu.forwards import Head, Taps, draft_blocks, new_head
from engine.models.cpu.packed_model import Moved, PackedLayers, PackedModel
from engine.models.cpu.product import PANEL, Floats, num_products, pack_panels
from engine.models.cpu.rows import num_scratch_blocks, pack_drafts
from engine.models.cpu.sampling import Draws
from engine.models.cpu.team import Team
from engine.models.cpu.weights import choose_storage, join, to_array
from engine.models.dflash import DFlashDrafter
from engine.models.packing import Span

_MAX_DRAFTS = 64  # a forward; the keys of so many blocks have room behind the context's


class DraftSide(NamedTuple):
    """What a verifier's forward needs of the drafter."""

    shape: Shape
    weights: Weights
    cache: Cache


class DrafterKernels:
    """A DFlash drafter's forwards, and the keys and values of its context."""

    def __init__(
        self, drafter: DFlashDrafter, model: PackedModel, num_pages: int, page_size: int, team: Team
    ) -> None:
        config = drafter.config
        layers = list(drafter.layers)
        rope: Any = layers[0].rope
        storage = choose_storage(layers, drafter.fc.weight)
        self.packed = PackedLayers(layers, drafter.norm.weight, rope.tables, storage)
        self._model, self._team, self._page_size = model, team, page_size
        self._scale = np.float32(config.input_embedding_scale)
        self._scratch = num_pages * page_size // BLOCK
        own = _MAX_DRAFTS * num_scratch_blocks(config.block_size)
        self._kept = self.packed.new_cache(self._scratch + own)
        self._tapped = np.array(config.target_layer_ids, np.int64)
        self._fc = join([self.packed.pack(to_array(drafter.fc.weight))])
        self._norm = to_array(drafter.hidden_norm.weight)
        self._markov: Markov | None = None
        if drafter.markov is not None:
            output = drafter.markov.lm_head.weight
            self._markov = Markov(
                to_array(drafter.markov.embed_previous.weight),
                join([pack_panels(to_array(output), choose_storage((), output))]),
            )
        self._no_drafts = self._drafts((), (), np.empty((0, 0), np.float32))
        drafter.layers = nn.ModuleList([Moved()])

    @property
    def num_bytes(self) -> int:
        markov = sum(weight.nbytes for weight in self._markov or ())
        return self.packed.num_bytes + self._fc.nbytes + markov

    def page_planes(self, num_pages: int) -> list[Tensor]:
        return self.packed.page_planes(self._kept, num_pages, self._page_size)

    def side(self, num_positions: int) -> DraftSide:
        cache = self.packed.with_rotation(self._kept, num_positions)
        return DraftSide(self.packed.shape, self.packed.weights, cache)

    def taps(self, num_rows: int) -> Taps:
        shape = self.packed.shape
        kv_size = 2 * shape.num_kv_heads * shape.head_dim
        sizes = (len(self._tapped) * shape.hidden, shape.hidden, kv_size)
        hidden, features, kv = (np.empty((num_rows, size), np.float32) for size in sizes)
        return Taps(self._tapped, hidden, self._fc, self._norm, features, kv)

    def draft(self, blocks: Seq[Span], lengths: Seq[int]) -> Tensor:
        """One drafter forward over whole blocks: logits of the first masks of each."""
        parts = []
        for part in _parts(blocks):
            args, head, cost = self._forward(blocks[part], lengths[part])
            args += (self._markov, self._no_drafts, no_draws())
            self._team.run(draft_blocks, *args, num_products=cost)
            parts.append(self._logits(head))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def draft_drawn(
        self, blocks: Seq[Span], lengths: Seq[int], draws: Draws
    ) -> tuple[Tensor, list[list[int]]]:
        """As `draft`, and the tokens: by `draw_chained` of logits and what `add_noise` adds."""
        assert self._markov is not None
        parts, tokens = [], []
        for part in _parts(blocks):
            args, head, cost = self._forward(blocks[part], lengths[part])
            anchors = [block.token_ids[0] for block in blocks[part]]
            num_noisy = len(head.chosen) if draws.has_noise else 0
            noise = np.empty((num_noisy, head.logits.shape[1]), np.float32)
            drafts = self._drafts(lengths[part], anchors, noise)
            cost += len(head.chosen) * num_products(self._markov.head)
            own = part_of(draws, part) if len(blocks) > _MAX_DRAFTS else draws
            args += (self._markov, drafts, own)
            self._team.run(draft_blocks, *args, num_products=cost)
            parts.append(self._logits(head))
            tokens += _tokens(drafts)
        return (parts[0] if len(parts) == 1 else torch.cat(parts)), tokens

    def draw_chained(self, scores: Tensor, lengths: Seq[int], anchors: Seq[int]) -> list[list[int]]:
        """scores: [R, V], noise included -> the tokens of each draft, one after the other."""
        assert self._markov is not None
        padded = _padded(scores)
        drafts = self._drafts(lengths, anchors, padded[:0])
        cost = len(scores) * num_products(self._markov.head)
        self._team.run(draw_chains, padded, self._markov, drafts, num_products=cost)
        return _tokens(drafts)

    def _drafts(self, lengths: Seq[int], anchors: Seq[int], noise: Floats) -> Drafts:
        starts = np.array([0, *accumulate(lengths)])
        room = (2, self._team.size, len(lengths))
        return Drafts(
            self._model.vocab_size,
            starts,
            np.array(anchors, np.int64),
            noise,
            np.empty(starts[-1], np.int64),
            np.empty(room, np.float32),
            np.empty(room, np.int64),
        )

    def _forward(self, blocks: Seq[Span], lengths: Seq[int]) -> tuple[tuple[Any, ...], Head, int]:
        """What a forward's kernel is given, its logits' place, and how many multiply-adds it is."""
        rows = pack_drafts(blocks, self._page_size, self._scratch)
        width = len(blocks[0].token_ids)
        token_ids = [token_id for block in blocks for token_id in block.token_ids]
        wanted = [i * width + k for i, length in enumerate(lengths) for k in range(1, length + 1)]
        head = new_head(self._model.head, wanted, self._model.vocab_size)
        x = self._model.embed(token_ids) * self._scale
        cache = self.packed.with_rotation(self._kept, max(block.end for block in blocks))
        shape = self.packed.shape
        args = (shape, self.packed.weights, rows, cache, new_buffers(x, shape), head)
        cost = len(x) * self.packed.num_weights + len(wanted) * num_products(self._model.head)
        return args, head, cost

    def _logits(self, head: Head) -> Tensor:
        return torch.from_numpy(head.logits)[:, : self._model.vocab_size]


def _parts(blocks: Seq[Span]) -> list[slice]:
    return [slice(i, i + _MAX_DRAFTS) for i in range(0, len(blocks), _MAX_DRAFTS)]


def _padded(rows: Tensor) -> Floats:
    """[R, V] with V filled up to whole panels."""
    missing = -rows.shape[1] % PANEL
    padded = torch.nn.functional.pad(rows, (0, missing)) if missing else rows
    return np.ascontiguousarray(padded.numpy())


def _tokens(drafts: Drafts) -> list[list[int]]:
    token_ids: list[int] = drafts.drawn.tolist()
    return [token_ids[first:end] for first, end in pairwise(drafts.starts.tolist())]
