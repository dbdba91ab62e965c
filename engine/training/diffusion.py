"""Stage 6: a block-diffusion language model, made from the verifier's own weights."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.training.block_forward import read_blocks
from engine.training.loop import Budget, Fit, Progress
from engine.training.noising import ALL_MASKED, Noise, deer_noise, mixed_noise
from engine.training.optimizer import OptimizerPair
from engine.training.presets import Preset, row_length
from engine.training.rows import Rows, RowSource
from engine.training.tokenizer import MASK_ID
from engine.training.verifier import save_verifier


@dataclass(frozen=True)
class DiffusionRecipe:
    """How a trained causal LM is made to denoise blocks as well."""

    block_lengths: tuple[int, ...] = (4, 8, 16, 32, 64)  # tokens after the anchor; one a batch
    draft_lengths: tuple[int, ...] = (4, 8, 16)  # of DEER's second stage
    draft_from: float = 0.6  # share of the budget from which that stage takes part
    draft_part: float = 0.6  # of its batches
    causal_weight: float = 0.3  # of the next-token loss that keeps the AR side alive
    corpus_every: int = 2  # one batch in so many is corpus text
    lr_factor: float = 0.5  # of the preset's rates, which are for weights that know nothing yet


@dataclass(frozen=True)
class Lesson:
    """Blocks of a batch: anchors [B, A], true tokens [B, A, N], and what of them is hidden.

    Nothing is known past the end of a row: it is masked and not asked for.
    """

    anchors: Tensor
    token_ids: Tensor
    inputs: Tensor
    asked: Tensor
    noise: Noise

    def to(self, device: torch.device) -> "Lesson":
        anchors, tokens, inputs, asked = (
            x.to(device) for x in (self.anchors, self.token_ids, self.inputs, self.asked)
        )
        return Lesson(anchors, tokens, inputs, asked, self.noise.to(device))


def make_lesson(rows: Rows, anchors: Tensor, noise: Noise) -> Lesson:
    """Read the blocks at the anchors [B, A] from the rows, and hide what the noise says."""
    B, A, N = noise.masked.shape
    positions = anchors[..., None] + 1 + torch.arange(N, device=anchors.device)
    inside = positions < rows.end[:, None, None]
    at = positions.clamp(max=rows.token_ids.shape[1] - 1)
    tokens = rows.token_ids.gather(1, at.flatten(1)).view(B, A, N)
    inputs = tokens.masked_fill(noise.masked | ~inside, MASK_ID)
    return Lesson(anchors, tokens, inputs, noise.masked & inside, noise)


class DiffusionTask:
    """Masked tokens of blocks at random anchors, and the next token of every clean row."""

    def __init__(
        self,
        model: Any,
        source: RowSource,
        recipe: DiffusionRecipe,
        max_length: int,
        device: torch.device,
    ) -> None:
        self.model, self.source, self.recipe = model, source, recipe
        self.max_length, self.device = max_length, device

    def loss(self, share: float) -> tuple[Tensor, int]:
        rows = self.source.next(row_length(share, self.max_length))
        lesson = self._choose_lesson(rows, share)
        rows, lesson = rows.to(self.device), lesson.to(self.device)
        on_gpu = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=on_gpu):
            causal, diffusion = lesson_losses(self.model, rows, lesson)
        return diffusion + self.recipe.causal_weight * causal, rows.token_ids.numel()

    def state(self) -> dict[str, Any]:
        return self.source.state

    def restore(self, state: dict[str, Any]) -> None:
        self.source.restore(state)

    def _choose_lesson(self, rows: Rows, share: float) -> Lesson:
        """DEER's stages (arXiv 2512.15176): learn to continue, later above all to draft."""
        recipe, width = self.recipe, rows.token_ids.shape[1]
        drafts = share > recipe.draft_from and torch.rand(()).item() < recipe.draft_part
        lengths = recipe.draft_lengths if drafts else recipe.block_lengths
        fitting = [n for n in lengths if 2 * n <= width] or [1]
        length = fitting[int(torch.randint(len(fitting), ()))]
        # As many block rows as clean rows, so that a step costs twice a plain one.
        num_blocks = max(1, width // (length + 1))
        # The last token of a prompt is an anchor too: all that is written begins there.
        anchors = replace(rows, first=(rows.first - 1).clamp(min=0)).random_anchors(num_blocks)
        shape = (len(anchors), num_blocks)
        return make_lesson(rows, anchors, (deer_noise if drafts else mixed_noise)(shape, length))


def lesson_losses(model: Any, rows: Rows, lesson: Lesson) -> tuple[Tensor, Tensor]:
    """Next-token cross-entropy of the clean rows, and the weighted one of the masked tokens.

    A block that is all masks is taught the model's own next-token distribution given the true
    tokens so far, which comes with the clean rows: in the mean the same as the tokens themselves,
    with less noise. Where tokens to the right are known that would be wrong, and the token counts.
    """
    clean, blocks = read_blocks(model, rows.token_ids, lesson.anchors, lesson.inputs)
    clean_logits = model.lm_head(clean).float()
    positions = torch.arange(rows.token_ids.shape[1] - 1, device=clean.device)
    held = positions + 1 < rows.end[:, None]
    causal = F.cross_entropy(clean_logits[:, :-1][held], rows.token_ids[:, 1:][held])

    row, block, offset = lesson.asked.nonzero(as_tuple=True)
    logits = model.lm_head(blocks[row, block, offset]).float()
    each = F.cross_entropy(logits, lesson.token_ids[row, block, offset], reduction="none")
    soft = lesson.noise.kind[row, block] == ALL_MASKED
    before = lesson.anchors[row, block] + offset
    target = clean_logits.detach()[row[soft], before[soft]].softmax(-1)
    from_causal = F.cross_entropy(logits[soft], target, reduction="none")
    each = each.masked_scatter(soft, from_causal)
    weight = lesson.noise.weight[row, block, offset]
    return causal, (each * weight).sum() / weight.sum()


def train_diffusion(
    model: Any,
    source: RowSource,
    recipe: DiffusionRecipe,
    preset: Preset,
    budget: Budget,
    folder: Path,
    seed: int,
    stop_after: int | None = None,
) -> Progress:
    """Teach a trained causal LM in place, or go on teaching it, in the folder of its checkpoint."""
    torch.manual_seed(seed)
    model.requires_grad_(True).train()
    task = DiffusionTask(model, source, recipe, preset.max_length, model.device)
    rates = (preset.muon_lr * recipe.lr_factor, preset.adam_lr * recipe.lr_factor)
    return Fit(task, OptimizerPair(model, *rates), budget, folder).run(stop_after)


def save_diffusion(model: Any, recipe: DiffusionRecipe, folder: Path) -> None:
    """A plain causal LM on disk, with one more key in its config that says how blocks are read."""
    model.config.diffusion_config = {
        "kind": "block_diffusion",
        "context": "causal",
        "logit_shift": True,
        "mask_token_id": MASK_ID,
        "block_lengths": list(recipe.block_lengths),
    }
    save_verifier(model, folder)
