"""Stage 5: the DFlash drafter, on the verifier's own outputs mixed with corpus rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.models.dflash import DFlashConfig, DFlashDrafter
from engine.training.blocks import Reading, block_hidden, read
from engine.training.corpus import RowReader
from engine.training.loop import Budget, Fit, Progress
from engine.training.losses import LOSSES, position_weights
from engine.training.optimizer import OptimizerPair
from engine.training.presets import Preset
from engine.training.readings import ReadingCache
from engine.training.rollouts import Rollouts
from engine.training.tokenizer import MASK_ID

CORPUS_EVERY = 4  # one batch in so many is corpus text, the rest the verifier's own
CORPUS_LENGTH = 256


def build_drafter(preset: Preset, seed: int) -> DFlashDrafter:
    """A fresh drafter for the preset's verifier; its output projections start at zero."""
    torch.manual_seed(seed)
    drafter = DFlashDrafter(drafter_config(preset))
    for name, weight in drafter.named_parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.02)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.zeros_(weight)
    return drafter


def drafter_config(preset: Preset) -> DFlashConfig:
    return DFlashConfig(
        num_layers=preset.drafter_layers,
        hidden_size=preset.hidden_size,
        num_heads=preset.num_heads,
        num_kv_heads=preset.num_kv_heads,
        head_dim=preset.head_dim,
        intermediate_size=preset.drafter_intermediate_size,
        vocab_size=preset.vocab_size,
        mask_token_id=MASK_ID,
        target_layer_ids=preset.taps,
        num_target_layers=preset.num_layers,
        block_size=preset.block_size,
        max_position_embeddings=preset.max_length,
    )


@dataclass(frozen=True)
class Rows:
    """Token ids [B, L], and from which to before which position anchors may stand, [B] each."""

    token_ids: Tensor
    first: Tensor
    end: Tensor
    comes_again: bool = False


class DrafterTask:
    """Random anchors in the verifier's rollouts, and now and then in corpus rows."""

    def __init__(
        self,
        model: DFlashDrafter,
        verifier: Any,
        reader: RowReader,
        rollouts: Rollouts | None,
        preset: Preset,
        loss: str,
    ) -> None:
        self.model, self.verifier = model, verifier
        self.reader, self.rollouts, self.preset = reader, rollouts, preset
        self.device = next(verifier.parameters()).device
        self._row_loss = LOSSES[loss]
        self._readings = ReadingCache(verifier, model.config.target_layer_ids)
        self._batches = 0

    def loss(self, share: float) -> tuple[Tensor, int]:
        rows = self._next_rows()
        reading = self._read(rows)
        anchors = random_anchors(rows, self.preset.anchors)
        size = self.model.config.block_size
        spread = anchors[:, :, None] + torch.arange(size - 1, device=self.device)
        held = spread + 1 < rows.end[:, None, None]
        before = spread.clamp(max=rows.token_ids.shape[1] - 2)
        row_index = torch.arange(len(anchors), device=self.device)[:, None, None]
        with torch.no_grad():
            target = self.verifier.lm_head(reading.hidden[row_index, before][held])
        hidden = block_hidden(self.model, self.verifier, reading, anchors)
        draft = self.verifier.lm_head(hidden[held])
        weight = position_weights(size - 1).to(self.device).expand_as(held)[held]
        loss = self._row_loss(draft, target, rows.token_ids[row_index, before + 1][held])
        return (loss * weight).sum() / weight.sum(), rows.token_ids.numel()

    def state(self) -> dict[str, Any]:
        return {"reader": self.reader.state, "batches": self._batches}

    def restore(self, state: dict[str, Any]) -> None:
        self.reader.restore(state["reader"])
        self._batches = state["batches"]

    def _next_rows(self) -> Rows:
        self._batches += 1
        if self.rollouts is not None and self._batches % CORPUS_EVERY:
            return self._rollout_rows(self.rollouts)
        length = min(CORPUS_LENGTH, self.preset.max_length)
        tokens = self.reader.batch(self.preset.tokens_a_step // length, length).to(self.device)
        first = torch.ones(len(tokens), dtype=torch.int64, device=self.device)
        return Rows(tokens, first, torch.full_like(first, length))

    def _read(self, rows: Rows) -> Reading:
        if rows.comes_again and self.device.type == "cpu":  # a GPU reads faster than it copies
            return self._readings.read(rows.token_ids, rows.end)
        return read(self.verifier, rows.token_ids, self.model.config.target_layer_ids)

    def _rollout_rows(self, rollouts: Rollouts) -> Rows:
        count = max(1, self.preset.tokens_a_step // CORPUS_LENGTH)
        random = np.random.default_rng((self.reader.seed, self._batches))
        tokens, first, end = rollouts.batch(count, random)
        device = self.device
        return Rows(tokens.to(device), first.to(device), end.to(device), comes_again=True)


def random_anchors(rows: Rows, count: int) -> Tensor:
    """[B, count] anchors, each with at least one token after it."""
    span = (rows.end - 1 - rows.first).clamp(min=1)
    at = (torch.rand(len(span), count) * span.cpu()[:, None]).long().to(span.device)
    return rows.first[:, None] + at


def train_drafter(
    preset: Preset,
    verifier: Any,
    reader: RowReader,
    rollouts: Rollouts | None,
    budget: Budget,
    folder: Path,
    seed: int,
    loss: str = "soft",
    stop_after: int | None = None,
) -> tuple[DFlashDrafter, Progress]:
    """Train, or go on training, the drafter of this folder against a frozen verifier."""
    verifier.requires_grad_(False).eval()
    drafter = build_drafter(preset, seed).to(next(verifier.parameters()).device)
    task = DrafterTask(drafter, verifier, reader, rollouts, preset, loss)
    optimizer = OptimizerPair(drafter, preset.muon_lr, preset.adam_lr)
    progress = Fit(task, optimizer, budget, folder).run(stop_after)
    return drafter, progress
