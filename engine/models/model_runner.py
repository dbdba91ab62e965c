"""The model runner: everything that runs on the device happens from here."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.base import BaseStats
from engine.models.attention import Backend
from engine.models.block_attention import BlockAttention
from engine.models.canvas_lm import CanvasLM
from engine.models.causal_lm import CausalLM
from engine.models.compiled import CompiledDrafter
from engine.models.cpu_kernels import cpu_kernels
from engine.models.dflash import DFlashDrafter
from engine.models.diffusion_lm import DiffusionLM
from engine.models.fused_drafter import fuse_drafter
from engine.models.kv_pool import KvPool, KvShape
from engine.models.packing import PackedBatch, Span, pack

if TYPE_CHECKING:
    from engine.models.cpu.runner import KernelRunner
    from engine.models.cpu.sampling import Draws


@dataclass
class ForwardCounts(BaseStats):
    """How often, and over how many rows, each model ran: these numbers do not jitter."""

    num_verify_forwards: int = 0
    num_verify_rows: int = 0
    num_draft_forwards: int = 0
    num_draft_rows: int = 0
    num_denoise_forwards: int = 0
    num_denoise_rows: int = 0


class ModelRunner:
    """Owns the models, their KV pools and the device; takes spans, returns logits.

    One page table serves all pools: the verifier's keys and values, the drafter's context keys and
    values, which are a function of the verifier's hidden state at the same position, and those of
    a diffusion model. Every verifier forward writes the first two, so a cached page always holds
    both; what the diffusion model has read of a sequence is for its strategy to know.
    """

    def __init__(
        self,
        verifier: CausalLM | None,
        drafter: DFlashDrafter | None,
        *,
        num_pages: int,
        page_size: int,
        backend: Backend,
        diffusion: DiffusionLM | None = None,
        canvas: CanvasLM | None = None,
    ) -> None:
        self._verifier = verifier
        self.drafter = drafter
        self.diffusion = diffusion
        self.canvas = canvas  # in the place of the other
        self.num_pages = num_pages
        self.page_size = page_size
        self.counts = ForwardCounts()
        self._backend = backend
        self._compiled_drafter: CompiledDrafter | None = None
        self._kernels: KernelRunner | None = None
        denoiser = canvas if diffusion is None else diffusion.backbone
        first = verifier or denoiser
        assert first is not None, "there must be a model to run"
        self.vocab_size = first.vocab_size
        self.device, self._dtype = first.device, first.dtype
        self._pool = None if verifier is None else self._kv_pool(verifier.kv_shape)
        self._context_pool = None if drafter is None else self._kv_pool(drafter.config.kv_shape)
        self._diffusion_pool = None if denoiser is None else self._kv_pool(denoiser.kv_shape)

    def fuse_layers(self) -> None:
        """From now on compute with fewer and larger operators, where there are such layers."""
        backbone = None if self.diffusion is None else self.diffusion.backbone
        for model in (self._verifier, backbone):
            if model is not None:
                model.fuse_layers()
        if self.drafter is not None:
            fuse_drafter(self.drafter)

    def use_kernels(self, num_threads: int) -> bool:
        """From now on run through the kernels of `cpu/`, which take the fused layers' weights over.

        Returns False, and nothing has changed, where they do not compute one of these models. What
        was in the pages before is lost.
        """
        if self.canvas is not None:  # which they do not compute, nor may they take a part
            return False
        kernels = cpu_kernels(
            self._verifier,
            self.drafter,
            self.diffusion,
            self.num_pages,
            self.page_size,
            num_threads,
        )
        if kernels is None:
            return False
        self._kernels = kernels
        self._pool = self._context_pool = self._diffusion_pool = None
        return True

    def compile(self) -> None:
        """From now on run every model through torch.compile; their layers must stay as they are."""
        if self._verifier is not None:
            self._verifier.compile()
        if self.diffusion is not None:
            self.diffusion.backbone.compile()
        if self.drafter is not None:
            self._compiled_drafter = CompiledDrafter(self.drafter, self.device)

    @property
    def page_planes(self) -> list[Tensor]:
        """All that a page always holds, as views of the pools: [pages, bytes] uint8 each."""
        if self._kernels is not None:
            return self._kernels.page_planes(self.num_pages)
        pools = (self._pool, self._context_pool)
        return [plane for pool in pools if pool is not None for plane in pool.planes()]

    @property
    def uses_kernels(self) -> bool:
        return self._kernels is not None

    @property
    def num_packed_bytes(self) -> int:
        """What the kernels hold of the models' weights, beside what is left in the models."""
        return 0 if self._kernels is None else self._kernels.num_bytes

    @property
    def verifier(self) -> CausalLM:
        assert self._verifier is not None, "a diffusion model alone has no verifier"
        return self._verifier

    @property
    def has_verifier(self) -> bool:
        return self._verifier is not None

    @property
    def block_size(self) -> int:
        """Anchor and masks; 0 without a drafter."""
        return 0 if self.drafter is None else self.drafter.config.block_size

    @property
    def chains_drafts(self) -> bool:
        """Whether the drafter says how a token depends on the one drafted just before it."""
        return self.drafter is not None and self.drafter.markov is not None

    @torch.inference_mode()
    def next_token_bias(self, token_ids: Tensor) -> Tensor:
        """Tokens [N] -> what the drafter adds to the logits of the token after each, [N, V]."""
        assert self.drafter is not None and self.drafter.markov is not None
        return self.drafter.markov.bias(token_ids)

    def draw_chained(self, scores: Tensor, lengths: Seq[int], anchors: Seq[int]) -> list[list[int]]:
        """Of scores [R, V] the most likely tokens of each draft, each biased by the one before."""
        assert self._kernels is not None
        return self._kernels.draw_chained(scores, lengths, anchors)

    @property
    def draws_drafts(self) -> bool:
        """Whether `draft_drawn` is there: where the logits are those that drafts are drawn from."""
        has_kernels = self._kernels is not None and self.chains_drafts
        return has_kernels and self.drafter is not None and not self.drafter.config.shapes_logits

    @torch.inference_mode()
    def verify(self, spans: Seq[Span], logit_rows: list[int]) -> Tensor:
        """One packed verifier forward; returns the logits of the given rows of the pack, [R, V]."""
        if self._kernels is not None:
            return self.verify_drawn(spans, logit_rows, None)
        self._count_verify(spans)
        assert self._pool is not None
        batch = pack(spans, self.page_size, self.device)
        rows = torch.tensor(logit_rows, dtype=torch.int64).to(self.device)
        logits = self.verifier.forward(batch, self._pool, self._backend, rows)
        self._write_context(batch)
        return logits

    def verify_drawn(self, spans: Seq[Span], logit_rows: list[int], draws: Draws | None) -> Tensor:
        """As `verify`, where kernels run; what they are to draw from the logits is in `draws`."""
        assert self._kernels is not None
        self._count_verify(spans)
        return self._kernels.verify(spans, logit_rows, draws)

    @torch.inference_mode()
    def draft(self, blocks: Seq[Span], lengths: Seq[int]) -> Tensor:
        """One packed drafter forward over whole blocks, an anchor and its masks each.

        Returns logits [sum(lengths), V]: of every block its first `lengths[i]` masks. The block
        always has its trained size; a shorter draft only saves the output head.
        """
        assert self.drafter is not None
        self._count_draft(blocks)
        if self._kernels is not None:
            return self.drafter.shape_logits(self._kernels.draft(blocks, lengths))
        assert self._context_pool is not None
        token_ids = torch.tensor([block.token_ids for block in blocks]).to(self.device)
        starts = torch.tensor([block.start for block in blocks]).to(self.device)
        width = token_ids.shape[1]
        positions = starts[:, None] + torch.arange(width, device=self.device)
        config = self.drafter.config
        attend = BlockAttention(self._context_pool, blocks, starts, width, config)
        embeds = self.verifier.embed(token_ids.flatten(), config.input_embedding_scale)
        draft = self._compiled_drafter or self.drafter
        hidden = draft(embeds, positions.flatten(), attend)
        wanted = [i * width + k for i, length in enumerate(lengths) for k in range(1, length + 1)]
        logits = self.verifier.logits(hidden[torch.tensor(wanted).to(self.device)])
        return self.drafter.shape_logits(logits)

    def draft_drawn(
        self, blocks: Seq[Span], lengths: Seq[int], draws: Draws
    ) -> tuple[Tensor, list[list[int]]]:
        """As `draft`, and the tokens of each draft, drawn as `draws` says in the same call."""
        assert self._kernels is not None
        self._count_draft(blocks)
        return self._kernels.draft_drawn(blocks, lengths, draws)

    def draft_as_served(self, blocks: Seq[Span], lengths: Seq[int]) -> Tensor:
        """As `draft`, and drawn from where `draft_drawn` is there: for whoever times it."""
        if not self.draws_drafts:
            return self.draft(blocks, lengths)
        assert self._kernels is not None
        self._count_draft(blocks)
        return self._kernels.draft_greedily(blocks, lengths)

    def warm_up(self) -> None:
        """Call the kernels that only some requests need; uses page 0.

        They are compiled, or read from disk, when first called, and nobody is to wait for that.
        """
        assert self._kernels is not None
        self._kernels.draw_once()
        if self.drafter is not None:
            self.draft([Span([0] * self.block_size, 1, [0])], [1])
        if self.chains_drafts:
            self.draw_chained(torch.zeros(1, self.vocab_size), [1], [0])

    def _count_verify(self, spans: Seq[Span]) -> None:
        self.counts.num_verify_forwards += 1
        self.counts.num_verify_rows += sum([len(span.token_ids) for span in spans])

    def _count_draft(self, blocks: Seq[Span]) -> None:
        self.counts.num_draft_forwards += 1
        self.counts.num_draft_rows += sum(len(block.token_ids) for block in blocks)

    @torch.inference_mode()
    def denoise(self, spans: Seq[Span], logit_rows: list[int]) -> Tensor:
        """One packed forward of the diffusion model; logits of the given rows of the pack, [R, V].

        A mask is never an answer: its logit is -inf.
        """
        self.counts.num_denoise_forwards += 1
        self.counts.num_denoise_rows += sum(len(span.token_ids) for span in spans)
        if self._kernels is not None:
            return self._without_mask(self._kernels.denoise(spans, logit_rows))
        assert self._diffusion_pool is not None
        rows = torch.tensor(logit_rows, dtype=torch.int64).to(self.device)
        if self.canvas is not None:
            return self.canvas.forward(
                spans, self.page_size, self._diffusion_pool, self._backend, rows
            )
        assert self.diffusion is not None
        batch = pack(spans, self.page_size, self.device)
        backbone = self.diffusion.backbone
        logits = backbone.forward(batch, self._diffusion_pool, self._backend, rows)
        return self._without_mask(logits)

    @property
    def shifts_logits(self) -> bool:
        """Whether row p of the diffusion model predicts position p + 1."""
        return self.diffusion is not None and self.diffusion.config.logit_shift

    def _without_mask(self, logits: Tensor) -> Tensor:
        assert self.diffusion is not None
        logits[:, self.diffusion.config.mask_token_id] = -torch.inf
        return logits

    def _kv_pool(self, shape: KvShape) -> KvPool:
        return KvPool(shape, self.num_pages, self.page_size, self._dtype, self.device)

    def _write_context(self, batch: PackedBatch) -> None:
        """Keep the drafter's context of every row that the verifier has just read."""
        if self.drafter is None or self._context_pool is None:
            return
        context = self.drafter.project_context(self.verifier.tapped_hidden())
        for layer in range(self.drafter.config.num_layers):
            keys, values = self.drafter.context_kv(layer, context, batch.positions)
            self._context_pool.write(layer, batch.slots, keys, values)
