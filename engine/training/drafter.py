"""Stage 5: the DFlash drafter, on the verifier's own outputs mixed with corpus rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.models.dflash import HEADS, DFlashConfig, DFlashDrafter
from engine.training.blocks import block_hidden
from engine.training.frozen_verifier import FrozenVerifier, Reading
from engine.training.loop import Budget, Fit, Progress
from engine.training.losses import LOSSES, POSITION_WEIGHTS, confidence_loss
from engine.training.optimizer import OptimizerPair
from engine.training.presets import Preset
from engine.training.readings import ReadingCache
from engine.training.rows import Rows, RowSource
from engine.training.tokenizer import MASK_ID


@dataclass(frozen=True)
class DrafterRecipe:
    """How a drafter is trained, whatever its verifier is."""

    loss: str = "soft"
    position_weights: str = "decay"
    anchors: int = 32  # blocks learnt from in a row of one batch
    muon_lr: float = 0.02
    adam_lr: float = 3e-3


def build_drafter(config: DFlashConfig, seed: int) -> DFlashDrafter:
    """A fresh drafter; its output projections start at zero."""
    torch.manual_seed(seed)
    drafter = DFlashDrafter(config)
    for name, weight in drafter.named_parameters():
        if name.startswith(HEADS):
            continue  # they start as what they are: nothing
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.02)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.zeros_(weight)
    return drafter


def start_from(drafter: DFlashDrafter, known: DFlashDrafter) -> None:
    """Give a fresh drafter another's weights; heads that are not the same in both stay fresh."""
    own, given = drafter.state_dict(), known.state_dict()
    alike = {n: x for n, x in given.items() if n in own and own[n].shape == x.shape}
    needed = [name for name in own | given if not name.startswith(HEADS)]
    if known.config.target_layer_ids != drafter.config.target_layer_ids or not all(
        name in alike for name in needed
    ):
        raise ValueError("--init-drafter: that drafter has another shape, or taps other layers")
    drafter.load_state_dict(alike, strict=False)


def drafter_config(
    preset: Preset, markov_rank: int = 0, has_confidence: bool = False
) -> DFlashConfig:
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
        markov_rank=markov_rank,
        has_confidence=has_confidence,
    )


@dataclass(frozen=True)
class Blocks:
    """The N masks of a batch whose tokens are known, as rows, and where they stood."""

    hidden: Tensor  # [N, H], of the drafter
    previous: Tensor  # [N], the token before: the anchor's, or the verifier's own
    tokens: Tensor  # [N], what the verifier wrote there
    held: Tensor  # [B, A, K - 1], which masks these are


class DrafterTask:
    """Blocks at random anchors: what the drafter says of them, against what the verifier says."""

    def __init__(
        self,
        model: DFlashDrafter,
        verifier: FrozenVerifier,
        source: RowSource,
        recipe: DrafterRecipe,
        readings: ReadingCache | None = None,
    ) -> None:
        self.model, self.verifier = model, verifier
        self.source, self.recipe = source, recipe
        self._row_loss = LOSSES[recipe.loss]
        self._readings = readings or ReadingCache(verifier, model.config.target_layer_ids)

    def loss(self, share: float) -> tuple[Tensor, int]:
        device = self.verifier.device
        rows = self.source.next().to(device)
        reading = self._read(rows)
        anchors = rows.random_anchors(self.recipe.anchors)
        size = self.model.config.block_size
        spread = anchors[:, :, None] + torch.arange(size - 1, device=device)
        held = spread + 1 < rows.end[:, None, None]
        before = spread.clamp(max=rows.token_ids.shape[1] - 2)
        row_index = torch.arange(len(anchors), device=device)[:, None, None]
        with torch.no_grad():
            target = self.verifier.target_logits(reading.hidden[row_index, before][held])
        hidden = block_hidden(self.model, self.verifier, reading, anchors)[held]
        tokens = rows.token_ids[row_index, before + 1][held]
        blocks = Blocks(hidden, rows.token_ids[row_index, before][held], tokens, held)
        return self._block_loss(blocks, target), rows.token_ids.numel()

    def _block_loss(self, blocks: "Blocks", target: Tensor) -> Tensor:
        draft = self.verifier.head(blocks.hidden)
        if self.model.markov is not None:
            draft = draft + self.model.markov.bias(blocks.previous)
        loss = self._row_loss(draft, target, blocks.tokens)
        if self.model.confidence is not None:
            # The head learns from the drafter; it must not pull it towards what is easy to judge.
            hidden = blocks.hidden.detach()
            log_odds = self.model.confidence_log_odds(hidden, blocks.previous)
            loss = loss + confidence_loss(log_odds, draft.detach(), target)
        weight = self._weights(draft, blocks)
        return (loss * weight).sum() / weight.sum()

    @torch.no_grad()
    def _weights(self, draft: Tensor, blocks: "Blocks") -> Tensor:
        probs = torch.zeros(blocks.held.shape, device=draft.device)
        chosen = draft.gather(1, blocks.tokens[:, None])[:, 0]
        probs[blocks.held] = (chosen - draft.logsumexp(-1)).exp()
        weigh = POSITION_WEIGHTS[self.recipe.position_weights]
        return weigh(probs, blocks.held)[blocks.held]

    def state(self) -> dict[str, Any]:
        return self.source.state

    def restore(self, state: dict[str, Any]) -> None:
        self.source.restore(state)

    def _read(self, rows: Rows) -> Reading:
        # A GPU reads a row faster than it copies one.
        if rows.comes_again and rows.token_ids.device.type == "cpu":
            return self._readings.read(rows.token_ids, rows.end)
        return self.verifier.read(rows.token_ids, self.model.config.target_layer_ids)


def train_drafter(
    drafter: DFlashDrafter,
    verifier: FrozenVerifier,
    source: RowSource,
    recipe: DrafterRecipe,
    budget: Budget,
    folder: Path,
    stop_after: int | None = None,
    readings: ReadingCache | None = None,
) -> Progress:
    """Train, or go on training, a drafter in the folder that keeps its checkpoint and log.

    Drafters of equal taps, trained one after the other, may share the `readings` of the verifier.
    """
    drafter.to(verifier.device)
    task = DrafterTask(drafter, verifier, source, recipe, readings)
    optimizer = OptimizerPair(drafter, recipe.muon_lr, recipe.adam_lr)
    return Fit(task, optimizer, budget, folder).run(stop_after)
