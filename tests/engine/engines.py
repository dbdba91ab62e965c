"""Engines around small real models, put together as `engine.build` does, in milliseconds."""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from engine.cache.page_pool import PagePool
from engine.cache.prefix_cache import PrefixCache
from engine.continuous_batching import BatcherConfig, ContinuousBatchingEngine, RequestBatcher
from engine.dfastllm_engine import DFastLLMEngine
from engine.generation.registry import load_strategies
from engine.generation.step_runner import StepRunner
from engine.generation.strategy import GenerationStrategy, ModelRole, StrategyContext
from engine.models.attention import sdpa_backend
from engine.models.canvas_lm import CanvasLM
from engine.models.causal_lm import CausalLM
from engine.models.device_pages import lower_floors
from engine.models.dflash import DFlashDrafter
from engine.models.diffusion_lm import DiffusionLM
from engine.models.loader import load_pair
from engine.models.model_runner import ModelRunner
from engine.models.token_sampler import TokenSampler
from engine.request.options import NO_OPTIONS, GenerationOptions
from engine.request.outputs import (
    FinishReason,
    SequenceSummary,
    StepOutput,
    StepTrace,
    TokenLogprobs,
)
from engine.request.sampling_params import SamplingParams
from engine.request.tokenizer import Tokenizer
from tests.engine.tiny_models import save_pair, tiny_drafter, tiny_qwen3
from tests.engine.tiny_tokenizers import make_byte_level

CPU = torch.device("cpu")


@dataclass
class TinyModels:
    """Loaded once; every engine around them has pages of its own."""

    verifier: CausalLM
    drafter: DFlashDrafter | None
    tokenizer: Tokenizer
    verifier_path: Path
    drafter_path: Path | None
    diffusion: DiffusionLM | None = None
    canvas: CanvasLM | None = None


def save_tiny_models(folder: Path) -> tuple[Path, Path]:
    # Weights this large give distributions that are neither flat nor a point: drafter and
    # verifier then agree on some tokens and differ on others.
    verifier = tiny_qwen3(initializer_range=0.06)
    verifier_path, drafter_path = save_pair(folder, verifier, tiny_drafter(block_size=6))
    make_byte_level(verifier_path)
    return verifier_path, drafter_path


def load_tiny_models(folder: Path) -> TinyModels:
    verifier_path, drafter_path = save_tiny_models(folder)
    return load_models(verifier_path, drafter_path)


def load_models(
    verifier_path: Path, drafter_path: Path, dtype: torch.dtype = torch.float32
) -> TinyModels:
    verifier, drafter = load_pair(str(verifier_path), str(drafter_path), dtype, CPU)
    assert drafter is not None
    return TinyModels(verifier, drafter, Tokenizer(verifier_path), verifier_path, drafter_path)


def make_engine(
    models: TinyModels,
    *,
    num_pages: int = 512,
    page_size: int = 4,
    max_batch_size: int = 8,
    max_step_tokens: int = 64,
    min_prefill_tokens: int = 16,
    max_model_len: int = 256,
    prefix_cache: bool = True,
    host_bytes: int = 0,
    extra: dict[str, GenerationStrategy] | None = None,
) -> DFastLLMEngine:
    """An engine with `num_pages` usable pages; `extra` adds strategies to the installed ones."""
    pool = PagePool(num_pages + 1, page_size)
    runner = ModelRunner(
        models.verifier,
        models.drafter,
        num_pages=num_pages + 1,
        page_size=page_size,
        backend=sdpa_backend,
        diffusion=models.diffusion,
        canvas=models.canvas,
    )
    strategies = {
        **load_strategies(strategy_context(models, max_model_len), available(models)),
        **(extra or {}),
    }
    floors = lower_floors(runner, [(1, 1.0)], host_bytes)  # to fetch always pays
    batcher = RequestBatcher(
        BatcherConfig(max_batch_size, max_step_tokens, min_prefill_tokens),
        pool,
        PrefixCache(pool, enabled=prefix_cache, floors=floors),
        strategies,
    )
    steps = StepRunner(runner, TokenSampler(models.tokenizer, CPU), strategies)
    return DFastLLMEngine(
        ContinuousBatchingEngine(batcher, steps),
        runner,
        models.tokenizer,
        model_name="tiny",
        max_model_len=max_model_len,
        default_mode="deer",
        modes=tuple(sorted(strategies)),
        fingerprint="tiny",
    )


def strategy_context(models: TinyModels, max_model_len: int = 256) -> StrategyContext:
    return StrategyContext(
        block_size=models.drafter.config.block_size if models.drafter else 0,
        mask_token_id=models.drafter.config.mask_token_id if models.drafter else None,
        max_model_len=max_model_len,
        max_draft_length=15,
        verify_costs=[(1, 1e-3), (128, 2e-3)],
        draft_costs=[(1, 1e-4), (16, 2e-4)],
        sampler=TokenSampler(models.tokenizer, CPU),
        diffusion=models.diffusion and models.diffusion.config,
        canvas=models.canvas and models.canvas.config,
        denoise_costs=[(1, 1e-3), (128, 2e-3)],
    )


def available(models: TinyModels) -> frozenset[ModelRole]:
    optional = {
        ModelRole.DRAFTER: models.drafter,
        ModelRole.DIFFUSION: models.diffusion,
        ModelRole.CANVAS: models.canvas,
    }
    there = {role for role, model in optional.items() if model is not None}
    return frozenset({ModelRole.VERIFIER, *there})


def batcher_of(engine: DFastLLMEngine) -> RequestBatcher:
    return engine._batching.batcher


def check_nothing_leaked(engine: DFastLLMEngine) -> None:
    """At rest no page is held, and every page is in exactly one state."""
    pool = batcher_of(engine).pool
    pool.check()
    assert pool.num_held == 0
    assert not engine.has_work


@dataclass
class Result:
    """All that one sequence has given out."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    summary: SequenceSummary | None = None
    traces: list[StepTrace] = field(default_factory=list)

    def take(self, output: StepOutput) -> None:
        assert self.finish_reason is None, "output after the end"
        self.token_ids += output.token_ids
        self.text += output.text
        self.logprobs += output.logprobs or ()
        self.prompt_logprobs += output.prompt_logprobs or ()
        self.traces += [output.trace] if output.trace else []
        self.finish_reason, self.summary = output.finish_reason, output.summary


@dataclass(frozen=True)
class Ask:
    """One sequence to be made: what a request may choose."""

    prompt: Seq[int]
    params: SamplingParams
    mode: str = "ar"
    draft_length: int | None = None
    options: GenerationOptions = NO_OPTIONS
    prompt_index: int = 0
    choice: int = 0
    cache_salt: str = ""
    replay: Seq[int] = ()


def add(engine: DFastLLMEngine, sequence_id: str, ask: Ask) -> None:
    sequence = engine.make_sequence(
        sequence_id,
        ask.prompt,
        ask.params,
        mode=ask.mode,
        options=ask.options
        if ask.draft_length is None
        else replace(ask.options, draft_length=ask.draft_length),
        prompt_index=ask.prompt_index,
        choice=ask.choice,
        cache_salt=ask.cache_salt,
        replay=ask.replay,
    )
    engine.add(sequence)


def drain(engine: DFastLLMEngine, results: dict[str, Result] | None = None) -> dict[str, Result]:
    """Step until nothing is left to do."""
    results = {} if results is None else results
    num_steps = 0
    while engine.has_work:
        for output in engine.step():
            results.setdefault(output.sequence_id, Result()).take(output)
        num_steps += 1
        assert num_steps < 5000, "the engine makes no progress"
    return results


def run_all(engine: DFastLLMEngine, asks: Seq[Ask]) -> list[Result]:
    """Run a batch to its end; results in the order of `asks`."""
    for index, ask in enumerate(asks):
        add(engine, str(index), ask)
    results = drain(engine)
    return [results[str(index)] for index in range(len(asks))]


def tokens(count: int, seed: int) -> list[int]:
    """A prompt of ordinary byte tokens."""
    chooser = random.Random(seed)
    return [chooser.randrange(200) for _ in range(count)]


def count_drafts(results: Seq[Result]) -> tuple[int, int]:
    """How many draft tokens were accepted, and how many were refused."""
    accepted = drafted = 0
    for result in results:
        assert result.summary is not None
        accepted += sum(j * n for j, n in enumerate(result.summary.acceptance_histogram))
        drafted += result.summary.num_draft_tokens
    return accepted, drafted - accepted
