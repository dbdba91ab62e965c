"""Drafters of one verifier side by side: losses, position weights and heads, trained alike."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from engine.models.dflash import DFlashConfig, DFlashDrafter, save_drafter
from engine.training.acceptance import RULES, Text, accepted_drafts
from engine.training.draft_cost import measure_cost
from engine.training.drafter import DrafterRecipe, build_drafter, start_from, train_drafter
from engine.training.drafts import DFlashProposer
from engine.training.frozen_verifier import FrozenVerifier
from engine.training.loop import Budget
from engine.training.readings import ReadingCache
from engine.training.rows import RowSource

FILE = "comparison.json"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variant:
    """What sets one drafter of the comparison apart from the others."""

    loss: str = "soft"
    position_weights: str = "decay"
    markov_rank: int = 0
    confidence: bool = False


# The first is the yardstick; the others change one thing of it, or join what may add up.
VARIANTS = {
    "CE of the distribution, decaying weights": Variant(),
    "CE of the token": Variant(loss="hard"),
    "0.1 CE + 0.9 TV": Variant(loss="tv"),
    "D-PACE weights": Variant(position_weights="dpace"),
    "confidence head": Variant(confidence=True),
    "Markov head of rank 64": Variant(markov_rank=64),
    "Markov head of rank 128": Variant(markov_rank=128),
    "Markov head of rank 128, 0.1 CE + 0.9 TV": Variant("tv", markov_rank=128),
    "Markov head of rank 128, 0.1 CE + 0.9 TV, D-PACE": Variant("tv", "dpace", markov_rank=128),
}


@dataclass(frozen=True)
class Comparison:
    """All that the variants have in common."""

    verifier: FrozenVerifier
    config: DFlashConfig
    recipe: DrafterRecipe
    make_source: Callable[[], RowSource]
    texts: dict[float, list[Text]]  # by temperature
    budget: Budget
    seed: int
    verifier_path: Path
    known: DFlashDrafter | None = None  # where all of them start, instead of from nothing

    def run(self, variants: dict[str, Variant], folder: Path) -> dict[str, Any]:
        """Train each from the same seed on the same rows, judge it, keep what is finished.

        Rows are the name of a variant and its figures: parameters, milliseconds of a draft, and
        tokens committed a verify forward by rule and temperature, whole blocks drafted. A folder
        that holds a comparison under other conditions is refused.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        conditions = {"budget": asdict(self.budget), "seed": self.seed}
        known = json.loads(path.read_text("utf-8")) if path.exists() else {}
        if known and known["conditions"] != conditions:
            raise ValueError(f"{path} was made under other conditions: {known['conditions']}")
        figures: dict[str, Any] = known.get("drafters", {})
        readings = ReadingCache(self.verifier, self.config.target_layer_ids)
        for number, (name, variant) in enumerate(variants.items()):
            if name not in figures:
                logger.info("variant %d of %d: %s", number + 1, len(variants), name)
                figures[name] = self._try(variant, folder / f"{number}", readings)
                whole = {"conditions": conditions, "drafters": figures}
                path.write_text(json.dumps(whole, indent=2) + "\n", "utf-8")
        return figures

    def _try(self, variant: Variant, folder: Path, readings: ReadingCache) -> dict[str, Any]:
        config = replace(
            self.config,
            markov_rank=variant.markov_rank,
            has_confidence=variant.confidence,
        )
        recipe = replace(self.recipe, loss=variant.loss, position_weights=variant.position_weights)
        drafter = build_drafter(config, self.seed)
        if self.known is not None:
            start_from(drafter, self.known)
        source = self.make_source()
        train_drafter(
            drafter, self.verifier, source, recipe, self.budget, folder, readings=readings
        )
        save_drafter(drafter, folder)
        device = self.verifier.device
        cost = measure_cost(self.verifier_path, folder, torch.float32, device)
        figures: dict[str, Any] = {
            "variant": asdict(variant),
            "num_parameters": sum(p.numel() for p in drafter.parameters()),
            "draft_ms": round(cost.draft_ms, 2),
        }
        proposer = DFlashProposer(drafter.eval(), self.verifier)
        depth = proposer.num_drafts
        for temperature, texts in self.texts.items():
            found = accepted_drafts(self.verifier, proposer, texts, lengths=[depth])
            for rule in RULES:
                mean = found[rule][depth]["all"].mean_committed
                figures[f"{rule}_t{temperature:g}"] = round(mean, 3)
        return figures


def comparison_section(figures: dict[str, Any]) -> str:
    """The Markdown table of a finished comparison."""
    columns = ("coupled_t0", "coupled_t1", "rejection_t1", "draft_ms")
    head = ("drafter", "parameters", "T=0", "T=1, shared noise", "T=1, p/q rule", "ms a draft")
    lines = [
        [name, f"{row['num_parameters']:,}", *(f"{row[column]:.2f}" for column in columns)]
        for name, row in figures.items()
    ]
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
