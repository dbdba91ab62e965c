"""Runs a drafter's blocks through the kernels, and draws their tokens."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.models.cpu.attention import BLOCK
from engine.models.cpu.chain import Drafts, Markov, draw_chains
from engine.models.cpu.draws import no_draws, part_of, tokens_of
from engine.models.cpu.forwards import Drafter, DraftSide, Taps, draft_blocks
from engine.models.cpu.held import HeldRoom
from engine.models.cpu.packed_model import Moved, PackedLayers, PackedModel
from engine.models.cpu.product import PANEL, Floats, num_products, pack_panels
from engine.models.cpu.rows import Packed, num_scratch_blocks, pack_drafts
from engine.models.cpu.sampling import Draws
from engine.models.cpu.team import Team
from engine.models.cpu.weights import choose_storage, join, to_array
from engine.models.dflash import DFlashDrafter
from engine.models.packing import Span

_MAX_DRAFTS = 64  # a forward; the keys of so many blocks have room behind the context's


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
        self._num_own = num_scratch_blocks(config.block_size)
        self._kept = self.packed.new_cache(self._scratch + _MAX_DRAFTS * self._num_own)
        self._tapped = np.array(config.target_layer_ids, np.int64)
        self._fc = join([self.packed.pack(to_array(drafter.fc.weight))])
        self._norm = to_array(drafter.hidden_norm.weight)
        self._has_markov = drafter.markov is not None
        self._markov = Markov(np.empty((0, 0), np.float32), self._fc[:0])
        if drafter.markov is not None:
            output = drafter.markov.lm_head.weight
            self._markov = Markov(
                to_array(drafter.markov.embed_previous.weight),
                join([pack_panels(to_array(output), choose_storage((), output))]),
            )
        self._held = HeldRoom()
        drafter.layers = nn.ModuleList([Moved()])

    @property
    def num_bytes(self) -> int:
        markov = sum(weight.nbytes for weight in self._markov)
        return self.packed.num_bytes + self._fc.nbytes + markov

    def page_planes(self, num_pages: int) -> list[Tensor]:
        return self.packed.page_planes(self._kept, num_pages, self._page_size)

    def side(self, num_rows: int, num_positions: int) -> DraftSide:
        """What a verifier's forward needs of the drafter, for so many rows and positions."""
        shape = self.packed.shape
        kv_size = 2 * shape.num_kv_heads * shape.head_dim
        sizes = (len(self._tapped) * shape.hidden, shape.hidden, kv_size)
        hidden, features, kv = (np.empty((num_rows, size), np.float32) for size in sizes)
        taps = Taps(self._tapped, hidden, self._fc, self._norm, features, kv)
        cache = self.packed.with_rotation(self._kept, num_positions)
        return DraftSide(shape, self.packed.weights, cache, taps)

    def draft(self, blocks: Seq[Span], lengths: Seq[int]) -> Tensor:
        """One drafter forward over whole blocks: logits of the first masks of each."""
        parts = []
        for part in _parts(blocks):
            packed, logits, cost = self._prepare(blocks[part], lengths[part])
            self._run(packed, logits, logits[:0], no_draws(), cost)
            parts.append(self._model.as_tensor(logits))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def draft_drawn(
        self, blocks: Seq[Span], lengths: Seq[int], draws: Draws
    ) -> tuple[Tensor, list[list[int]]]:
        """As `draft`, and the tokens: by `draw_chained` of logits and what `add_noise` adds."""
        assert self._has_markov
        parts, tokens = [], []
        for part in _parts(blocks):
            packed, logits, cost = self._prepare(blocks[part], lengths[part])
            noise = np.empty((len(logits) if draws.has_noise else 0, logits.shape[1]), np.float32)
            cost += len(logits) * num_products(self._markov.head)
            own = part_of(draws, part) if len(blocks) > _MAX_DRAFTS else draws
            self._run(packed, logits, noise, own, cost)
            parts.append(self._model.as_tensor(logits))
            tokens += tokens_of(own)
        return (parts[0] if len(parts) == 1 else torch.cat(parts)), tokens

    def draw_chained(self, scores: Tensor, lengths: Seq[int], anchors: Seq[int]) -> list[list[int]]:
        """scores: [R, V], noise included -> the tokens of each draft, one after the other."""
        assert self._has_markov
        padded, starts = _padded(scores), np.array([0, *accumulate(lengths)])
        room = (2, self._team.size, len(lengths))
        drafts = Drafts(
            self._model.vocab_size,
            starts,
            np.array(anchors, np.int64),
            padded[:0],
            np.empty(starts[-1], np.int64),
            np.empty(room, np.float32),
            np.empty(room, np.int64),
        )
        cost = len(scores) * num_products(self._markov.head)
        self._team.run(draw_chains, padded, self._markov, drafts, num_products=cost)
        return tokens_of(drafts)

    def _prepare(self, blocks: Seq[Span], lengths: Seq[int]) -> tuple[Packed, Floats, int]:
        """What a forward's kernel is given, its logits' place, and how many multiply-adds it is."""
        packed = pack_drafts(blocks, self._page_size, lengths)
        logits = self._model.new_logits(sum(lengths))
        cost = packed.num_rows * self.packed.num_weights
        return packed, logits, cost + len(logits) * self._model.num_head_weights

    def _run(
        self, packed: Packed, logits: Floats, noise: Floats, draws: Draws, num_products: int
    ) -> None:
        given = self._held.of(packed, self._drafter), packed.numbers, logits, noise, draws
        self._team.run(draft_blocks, *given, num_products=num_products)

    def _drafter(self, num_rows: int, num_positions: int) -> Drafter:
        size = num_rows, num_positions, self._page_size // BLOCK
        model = self._model.decoder(self._kept, *size, layers=self.packed, scale=self._scale)
        room = (2, self._team.size, _MAX_DRAFTS)
        # Zeros: what a helper that failed has not written is the number of a token all the same.
        sums, tokens = np.zeros(room, np.float32), np.zeros(room, np.int64)
        return Drafter(model, self._scratch, self._num_own, self._markov, sums, tokens)


def _parts(blocks: Seq[Span]) -> list[slice]:
    return [slice(i, i + _MAX_DRAFTS) for i in range(0, len(blocks), _MAX_DRAFTS)]


def _padded(rows: Tensor) -> Floats:
    """[R, V] with V filled up to whole panels."""
    missing = -rows.shape[1] % PANEL
    padded = torch.nn.functional.pad(rows, (0, missing)) if missing else rows
    return np.ascontiguousarray(padded.numpy())
