"""A drafter for somebody's own verifier, from documents to figures; a killed run goes on."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from engine.models.dflash import DFlashConfig, DFlashDrafter, load_drafter, save_drafter
from engine.training.acceptance import COUPLED, accepted_drafts, write_texts
from engine.training.documents import Document, read_documents
from engine.training.drafter import DrafterRecipe, build_drafter, train_drafter
from engine.training.drafter_shape import Shape, drafter_config
from engine.training.drafts import DFlashProposer
from engine.training.lessons import Lessons
from engine.training.loop import Budget
from engine.training.own_rollouts import RolloutPlan, own_rollouts
from engine.training.own_verifier import OptionError, find_mask_token, load_own_verifier
from engine.training.plot import draw_stage
from engine.training.rollouts import Rollouts
from engine.training.rows import ROW_LENGTH, RowSource

TEMPERATURES = (0.0, 1.0)
MOST_ROWS, MOST_ANCHORS = 16, 32
# A large vocabulary costs the memory of a step's logits, of which a loss holds several copies.
CPU_LOGITS_A_STEP, GPU_LOGITS_A_STEP = 1 << 25, 1 << 28
# What may be another when a run is taken up again.
RENEWABLE = ("out", "budget", "device")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What a run was asked to do; kept beside the drafter."""

    verifier: str
    data: tuple[str, ...]
    out: Path
    budget: Budget
    shape: Shape = field(default_factory=Shape)
    recipe: DrafterRecipe = field(default_factory=DrafterRecipe)
    rollouts: RolloutPlan = field(default_factory=RolloutPlan)
    mask_token_id: int | None = None
    prompt_tokens: int | None = None  # None: 512, or what the verifier's positions leave
    eval_prompts: int = 32
    seed: int = 1234
    device: str = "cpu"


class DrafterRun:
    """`out` becomes the drafter's folder; `out/run` holds rollouts, checkpoint, log and figures."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.work = options.out / "run"
        self.verifier = load_own_verifier(options.verifier, torch.device(options.device))
        mask_token_id = find_mask_token(self.verifier, options.mask_token_id)
        self.config = drafter_config(self.verifier, options.shape, mask_token_id)
        self.lessons = Lessons(self.verifier.tokenizer, self._prompt_tokens())

    def run(self) -> dict[str, float]:
        """Every stage; returns tokens committed a verify forward, by temperature."""
        options, verifier = self.options, self.verifier
        documents, held = self.lessons.hold_back(
            self._documents(), options.eval_prompts, options.seed
        )
        self._claim_folder()
        rollouts = own_rollouts(
            verifier,
            self.lessons,
            documents,
            options.rollouts,
            options.seed,
            self.work / "rollouts",
        )
        self._train(rollouts)
        return self._evaluate(held)

    def _prompt_tokens(self) -> int:
        """Prompt, rollout and the last block must all have positions."""
        options, most = self.options, self.verifier.served.max_positions
        room = most - options.rollouts.new_tokens - options.shape.block_size
        if room < 1:
            raise OptionError(
                f"--rollout-tokens {options.rollouts.new_tokens}: the verifier knows only {most} "
                "positions"
            )
        if options.prompt_tokens is not None and options.prompt_tokens > room:
            raise OptionError(
                f"--prompt-tokens {options.prompt_tokens}: {room} are left of the verifier's "
                f"{most} positions after --rollout-tokens"
            )
        return options.prompt_tokens or min(512, room)

    def _documents(self) -> list[Document]:
        try:
            return list(read_documents(self.options.data))
        except (OSError, ValueError) as error:
            raise OptionError(f"--data: {error}") from error

    def _claim_folder(self) -> None:
        """A folder holds one run: what it was begun with is what it goes on with."""
        kept = {k: v for k, v in asdict(self.options).items() if k not in RENEWABLE}
        asked = json.loads(json.dumps(kept | {"drafter": asdict(self.config)}))
        path = self.work / "options.json"
        if path.exists():
            begun = json.loads(path.read_text("utf-8"))
            differing = sorted(name for name in asked if asked[name] != begun.get(name))
            if differing:
                raise OptionError(
                    f"--out {self.options.out} was begun with other options "
                    f"({', '.join(differing)}): give the same ones again, or another --out"
                )
        self.work.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asked, indent=2) + "\n", "utf-8")

    def _train(self, rollouts: Rollouts) -> None:
        options, frozen = self.options, self.verifier.frozen
        drafter = build_drafter(self.config, options.seed)
        # A draft is served with the bare head: what scales the verifier's logits is the norm's.
        drafter.norm.weight.data.mul_(frozen.logit_scale)
        self._log_sizes(drafter)
        rows, anchors = batch_size(self.config, frozen.device)
        source = RowSource(rollouts, None, rows * ROW_LENGTH, options.seed)
        recipe = replace(options.recipe, anchors=anchors)
        train_drafter(drafter, frozen, source, recipe, options.budget, self.work / "drafter")
        save_drafter(drafter, options.out)
        draw_stage(self.work / "drafter", ())

    def _log_sizes(self, drafter: DFlashDrafter) -> None:
        own = sum(p.numel() for p in drafter.parameters()) / 1e6
        whole = self.verifier.served.num_parameters / 1e6
        logger.info(
            "verifier %.1f M parameters; drafter %.1f M: layers %d, taps %s, block %d, mask id %d",
            *(whole, own, self.config.num_layers, self.config.target_layer_ids),
            *(self.config.block_size, self.config.mask_token_id),
        )

    def _evaluate(self, prompts: list[list[int]]) -> dict[str, float]:
        """Of the drafter as saved, drafting whole blocks, on prompts that it has not learnt."""
        frozen, stop = self.verifier.frozen, self.verifier.tokenizer.eos_token_ids
        drafter = load_drafter(self.options.out, torch.float32, frozen.device)
        proposer, depth = DFlashProposer(drafter, frozen), self.config.block_size - 1
        named, new_tokens = [("held back", p) for p in prompts], self.options.rollouts.new_tokens
        figures = {}
        for temperature in TEMPERATURES:
            texts = write_texts(frozen, named, temperature, new_tokens, stop, depth)
            rounds = accepted_drafts(frozen, proposer, texts, [COUPLED], [depth])
            figures[f"T={temperature:g}"] = round(rounds[COUPLED][depth]["all"].mean_committed, 3)
        text = json.dumps({"mean_committed": figures}, indent=2)
        (self.work / "evaluation.json").write_text(text + "\n", "utf-8")
        return figures


def batch_size(config: DFlashConfig, device: torch.device) -> tuple[int, int]:
    """(rows, anchors in each): as many blocks a step as the memory of their logits allows."""
    most = CPU_LOGITS_A_STEP if device.type == "cpu" else GPU_LOGITS_A_STEP
    blocks = max(1, most // (config.vocab_size * (config.block_size - 1)))
    anchors = min(blocks, MOST_ANCHORS)
    return min(MOST_ROWS, blocks // anchors), anchors
