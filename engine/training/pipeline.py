"""The stages in their order, and the files by which each hands over to the next."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import Qwen3ForCausalLM

from engine.models.dflash import DFlashDrafter, load_drafter, save_drafter
from engine.training import corpus, rollouts
from engine.training.acceptance import Text
from engine.training.card import write_card
from engine.training.compare import VARIANTS, Comparison
from engine.training.diffusion import DiffusionRecipe, save_diffusion, train_diffusion
from engine.training.diffusion_eval import DRAFT_LENGTH, evaluate_diffusion
from engine.training.documents import Document, read_documents, source_weight
from engine.training.drafter import (
    DrafterRecipe,
    build_drafter,
    drafter_config,
    start_from,
    train_drafter,
)
from engine.training.drafts import DFlashProposer
from engine.training.evaluate import (
    committed_by_source,
    evaluate_cost,
    evaluate_verifier,
    write_answers,
)
from engine.training.frozen_verifier import FrozenVerifier
from engine.training.held_out import held_out_prompts
from engine.training.loop import Budget, Progress
from engine.training.plot import draw_stage
from engine.training.presets import ROW_LENGTHS, Preset
from engine.training.rollouts import Rollouts
from engine.training.rows import RowSource
from engine.training.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from engine.training.trained import load_trained
from engine.training.verifier import save_verifier, train_verifier

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What a run was asked to do; it is kept beside the models, so that they can be made again."""

    data: tuple[str, ...]
    heldout: tuple[str, ...]
    out: str
    preset_name: str
    weights: dict[str, float]
    seed: int
    verifier_budget: Budget
    drafter_budget: Budget
    diffusion_budget: Budget
    num_rollouts: int
    rollout_tokens: int
    rollout_batch: int
    eval_prompts: int
    loss: str
    position_weights: str
    markov_rank: int
    confidence_head: bool
    compare_steps: int
    init_drafter: str | None
    device: str
    command: str = ""


@dataclass
class Pipeline:
    """One output folder: a folder for each model, and `run/` for what the stages need."""

    options: Options
    preset: Preset
    stages: dict[str, Callable[[], None]] = field(init=False)

    def __post_init__(self) -> None:
        self.stages = {
            "tokenizer": self.tokenizer,
            "pack": self.pack,
            "verifier": self.verifier,
            "rollouts": self.rollouts,
            "drafter": self.drafter,
            "diffusion": self.diffusion,
            "eval": self.evaluate,
            "card": self.card,
        }

    def run(self, stage: str) -> None:
        """One stage, or `all` of them; a finished stage before the first unfinished is skipped."""
        self.run_folder.mkdir(parents=True, exist_ok=True)
        if stage != "all":
            (self.stages | {"compare": self.compare})[stage]()
            return
        done = {
            "tokenizer": (self.run_folder / "tokenizer" / "tokenizer.json").exists(),
            "pack": corpus.is_packed(self.run_folder / "corpus"),
            "rollouts": (self.run_folder / "rollouts" / rollouts.FILE).exists(),
        }
        for name, work in self.stages.items():
            if not done.get(name, False):
                logger.info("stage %s", name)
                work()

    def tokenizer(self) -> None:
        documents = read_documents(self.options.data)
        made = train_tokenizer(documents, self.preset.vocab_size, self.options.weights)
        save_tokenizer(made, self.run_folder / "tokenizer", self.preset.max_length)

    def pack(self) -> None:
        packed = corpus.pack(self._documents(), self._tokenizer, self.run_folder / "corpus")
        logger.info("%d documents, %d tokens", len(packed.sources), len(packed.tokens))

    def verifier(self) -> None:
        options = self.options
        model, progress = train_verifier(
            self.preset,
            self._reader(),
            options.verifier_budget,
            self.run_folder / "verifier",
            options.seed,
            self.device,
        )
        save_verifier(model, self.out / "verifier")
        save_tokenizer(self._tokenizer, self.out / "verifier", self.preset.max_length)
        self._record("verifier", progress)

    def rollouts(self) -> None:
        options = self.options
        random = np.random.default_rng(options.seed)
        prompts = rollouts.choose_prompts(
            list(self._documents()), self._tokenizer, options.num_rollouts, options.weights, random
        )
        answers = rollouts.roll_out(
            self._load_verifier(),
            prompts,
            options.rollout_tokens,
            options.rollout_batch,
            rollouts.STOP_ROLLOUT,
            options.seed,
        )
        made = rollouts.save_rollouts(prompts, answers, self.run_folder / "rollouts")
        logger.info("%d rollouts, %d tokens", len(made), len(made.tokens))

    def drafter(self) -> None:
        options, preset = self.options, self.preset
        recipe = DrafterRecipe(
            options.loss,
            options.position_weights,
            preset.anchors,
            preset.muon_lr,
            preset.adam_lr,
        )
        config = drafter_config(preset, options.markov_rank, options.confidence_head)
        drafter = build_drafter(config, options.seed)
        if (known := self._first_drafter()) is not None:
            start_from(drafter, known)
        progress = train_drafter(
            drafter,
            self._load_verifier(),
            self._drafter_rows(),
            recipe,
            options.drafter_budget,
            self.run_folder / "drafter",
        )
        save_drafter(drafter, self.out / "drafter")
        self._record("drafter", progress)

    def diffusion(self) -> None:
        options, recipe = self.options, DiffusionRecipe()
        # Each token is read twice, clean and in a block.
        tokens_a_step = self.preset.tokens_a_step // 2
        known, reader = self._known_rollouts(), self._reader()
        source = RowSource(known, reader, tokens_a_step, options.seed, recipe.corpus_every)
        model = self._load_verifier().model
        progress = train_diffusion(
            model,
            source,
            recipe,
            self.preset,
            options.diffusion_budget,
            self.run_folder / "diffusion",
            options.seed,
        )
        save_diffusion(model, recipe, self.out / "diffusion")
        save_tokenizer(self._tokenizer, self.out / "diffusion", self.preset.max_length)
        self._record("diffusion", progress)

    def compare(self) -> None:
        """Train short-lived drafters that differ in one thing each; none of them is kept."""
        options, preset, verifier = self.options, self.preset, self._load_verifier()
        recipe = DrafterRecipe(
            anchors=preset.anchors, muon_lr=preset.muon_lr, adam_lr=preset.adam_lr
        )
        comparison = Comparison(
            verifier,
            drafter_config(preset),
            recipe,
            self._drafter_rows,
            self._answers(verifier),
            Budget(steps=options.compare_steps),
            options.seed,
            self.out / "verifier",
            self._first_drafter(),
        )
        comparison.run(VARIANTS, self.run_folder / "compare")

    def evaluate(self) -> None:
        """Figures of the models as saved, bfloat16 rounding and all, computed in float32."""
        options, trained = self.options, load_trained(self.out, self.device)
        verifier, tokenizer = trained.verifier, trained.tokenizer
        documents, length = list(read_documents(options.heldout)), self.preset.max_length
        figures = evaluate_verifier(verifier, documents, tokenizer, length)
        answers = self._answers(verifier) if trained.drafter or trained.diffusion else {}
        if trained.drafter is not None:
            proposer = DFlashProposer(trained.drafter, verifier)
            figures |= committed_by_source(verifier, proposer, answers)
            pair = (self.out / "verifier", self.out / "drafter")
            figures["cost"] = evaluate_cost(*pair, self.device)
        if trained.diffusion is not None:
            figures["diffusion"] = evaluate_diffusion(
                trained.diffusion, verifier, documents, tokenizer, length, answers, options.seed
            )
        self._write_json("evaluation.json", figures)
        logger.info("%s", json.dumps(figures))

    def card(self) -> None:
        write_card(load_trained(self.out, self.device))

    @property
    def out(self) -> Path:
        return Path(self.options.out)

    @property
    def run_folder(self) -> Path:
        return self.out / "run"

    @property
    def device(self) -> torch.device:
        return torch.device(self.options.device)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.run_folder / "tokenizer")

    def _documents(self) -> "filter[Document]":
        weights = self.options.weights
        return filter(
            lambda d: source_weight(d.source, weights) > 0, read_documents(self.options.data)
        )

    def _reader(self) -> corpus.RowReader:
        packed = corpus.load_corpus(self.run_folder / "corpus")
        return corpus.RowReader(packed, self.options.weights, self.options.seed)

    def _answers(self, verifier: FrozenVerifier) -> dict[float, list[Text]]:
        options, longest = self.options, max(self.preset.block_size - 1, DRAFT_LENGTH)
        documents = list(read_documents(options.heldout))
        prompts = held_out_prompts(documents, self._tokenizer, options.eval_prompts, options.seed)
        return write_answers(verifier, prompts, options.rollout_tokens, longest)

    def _first_drafter(self) -> DFlashDrafter | None:
        path = self.options.init_drafter
        return load_drafter(path, torch.float32, self.device) if path else None

    def _drafter_rows(self) -> RowSource:
        tokens_a_step, seed = self.preset.tokens_a_step, self.options.seed
        return RowSource(self._known_rollouts(), self._reader(), tokens_a_step, seed)

    def _known_rollouts(self) -> Rollouts | None:
        folder = self.run_folder / "rollouts"
        return rollouts.load_rollouts(folder) if (folder / rollouts.FILE).exists() else None

    def _load_verifier(self) -> FrozenVerifier:
        path = self.out / "verifier"
        model: torch.nn.Module = Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32)
        return FrozenVerifier(model.to(self.device))

    def _record(self, stage: str, progress: Progress) -> None:
        facts = {**vars(progress), "options": asdict(self.options), "preset": asdict(self.preset)}
        self._write_json(f"run/{stage}.json", facts)
        draw_stage(self.run_folder / stage, ROW_LENGTHS if stage == "verifier" else ())

    def _write_json(self, name: str, facts: dict[str, Any]) -> None:
        (self.out / name).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
