"""Runs spans through the kernels: what `ModelRunner` does with torch, on a CPU."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
from torch import Tensor

from engine.models.causal_lm import CausalLM
from engine.models.cpu.attention import BLOCK
from engine.models.cpu.drafter import DrafterKernels
from engine.models.cpu.draws import draw_once, greedy_draws, no_draws
from engine.models.cpu.forwards import Decoder, DraftSide, Reader, Taps, read_text
from engine.models.cpu.held import HeldRoom
from engine.models.cpu.packed_model import (
    PackedModel,
    can_pack,
    can_pack_drafter,
)
from engine.models.cpu.rows import pack_rows
from engine.models.cpu.sampling import Draws
from engine.models.cpu.team import Team
from engine.models.dflash import DFlashDrafter
from engine.models.diffusion_lm import DiffusionLM
from engine.models.packing import Span


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
        self._verifier: ModelKernels | None = None
        self._drafter: DrafterKernels | None = None
        if verifier is not None:
            model = PackedModel(verifier)
            if drafter is not None:
                self._drafter = DrafterKernels(drafter, model, *room)
            self._verifier = ModelKernels(model, *room, self._drafter)
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

    def verify(self, spans: Seq[Span], logit_rows: Seq[int], draws: Draws | None = None) -> Tensor:
        """With `draws` tokens are drawn in the same call."""
        assert self._verifier is not None
        return self._verifier.forward(spans, logit_rows, draws)

    def draft(self, blocks: Seq[Span], lengths: Seq[int]) -> Tensor:
        assert self._drafter is not None
        return self._drafter.draft(blocks, lengths)

    def draw_chained(self, scores: Tensor, lengths: Seq[int], anchors: Seq[int]) -> list[list[int]]:
        assert self._drafter is not None
        return self._drafter.draw_chained(scores, lengths, anchors)

    def draft_drawn(
        self, blocks: Seq[Span], lengths: Seq[int], draws: Draws
    ) -> tuple[Tensor, list[list[int]]]:
        assert self._drafter is not None
        return self._drafter.draft_drawn(blocks, lengths, draws)

    def draft_greedily(self, blocks: Seq[Span], lengths: Seq[int]) -> Tensor:
        """As `draft_drawn` without noise; the logits alone."""
        assert self._drafter is not None and self._verifier is not None
        draws = greedy_draws(lengths, self._verifier.model.vocab_size)
        return self._drafter.draft_drawn(blocks, lengths, draws)[0]

    def draw_once(self) -> None:
        """One token of logits that come from elsewhere, as those do that processors have seen."""
        if self._verifier is not None:
            draw_once(self._verifier.model.vocab_size)

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

    def __init__(
        self,
        model: PackedModel,
        num_pages: int,
        page_size: int,
        team: Team,
        drafter: DrafterKernels | None = None,
    ) -> None:
        """With a drafter, its context is written, too."""
        self.model = model
        self._drafter = drafter
        self._page_size, self._team = page_size, team
        self._kept = model.layers.new_cache(num_pages * page_size // BLOCK)
        self._held = HeldRoom()

    @property
    def num_bytes(self) -> int:
        return self.model.layers.num_bytes + self.model.head.nbytes

    def page_planes(self, num_pages: int) -> list[Tensor]:
        return self.model.layers.page_planes(self._kept, num_pages, self._page_size)

    def forward(self, spans: Seq[Span], logit_rows: Seq[int], draws: Draws | None = None) -> Tensor:
        """One packed forward, the drafter's context with it; logits of some rows, [R, V]."""
        packed = pack_rows(spans, self._page_size, logit_rows)
        logits = self.model.new_logits(len(logit_rows))
        self._team.run(
            read_text,
            self._held.of(packed, self._reader),
            packed.numbers,
            logits,
            draws or no_draws(),
            num_products=packed.num_rows * self.model.layers.num_weights
            + len(logit_rows) * self.model.num_head_weights,
        )
        return self.model.as_tensor(logits)

    def _reader(self, num_rows: int, num_positions: int) -> Reader:
        model = self.model.decoder(self._kept, num_rows, num_positions, self._page_size // BLOCK)
        if self._drafter is not None:
            return Reader(model, self._drafter.side(num_rows, num_positions))
        # numba compiles for the types that it is given, so a missing drafter is an empty one.
        return Reader(model, DraftSide(model.shape, model.weights, model.cache, _no_taps(model)))


def _no_taps(model: Decoder) -> Taps:
    none, room = np.empty(0, np.float32), np.empty((0, 0), np.float32)
    return Taps(np.empty(0, np.int64), room, model.head[:0], none, room, room)
