"""The composition root: the only place where concrete parts are chosen and put together."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from engine.cache.page_pool import PagePool
from engine.cache.prefix_cache import PrefixCache
from engine.continuous_batching import BatcherConfig, ContinuousBatchingEngine, RequestBatcher
from engine.decoding.noise import gumbel
from engine.dfastllm_engine import DFastLLMEngine
from engine.engine_config import (
    DTYPES,
    EMBEDDED,
    EMBEDDED_NAME,
    EngineConfig,
    fingerprint,
    resolve,
)
from engine.generation.registry import load_strategies, missing_roles, strategy_kinds
from engine.generation.step_runner import StepRunner
from engine.generation.strategy import GenerationStrategy, ModelRole, StrategyContext
from engine.models.attention_choice import AttentionChoice, AttentionNeed, choose_attention
from engine.models.causal_lm import UnsupportedModelError
from engine.models.compiled import check_compiler
from engine.models.cpu_kernels import kernel_draws, kernel_gumbel
from engine.models.device_pages import lower_floors, page_tag
from engine.models.forward_costs import batch_costs, denoise_costs, verify_costs
from engine.models.kv_pool import bytes_per_token
from engine.models.loader import Models, check_models, load_models
from engine.models.model_runner import ModelRunner
from engine.models.self_test import check_against_eager
from engine.models.token_sampler import TokenSampler
from engine.models.warm_up import compile_forwards, quantize
from engine.request.tokenizer import Tokenizer

__all__ = [
    "EMBEDDED",
    "EMBEDDED_NAME",
    "EngineConfig",
    "ModeNotOfferedError",
    "assemble_engine",
    "build_engine",
    "resolve",
]

logger = logging.getLogger("dfastllm.engine")


_ROLE_NAMES = {
    ModelRole.VERIFIER: "a verifier",
    ModelRole.DRAFTER: "a drafter",
    ModelRole.DIFFUSION: "a diffusion model",
    ModelRole.CANVAS: "a diffusion model",
}


class ModeNotOfferedError(UnsupportedModelError):
    """A default mode for which there is no strategy, or not the models that it needs."""


def build_engine(config: EngineConfig | None = None) -> DFastLLMEngine:
    """Load the models, test them, measure what their forwards cost, and join the parts."""
    config = resolve(config or EngineConfig())
    if config.compile:
        check_compiler(torch.device(config.device))
    dtype = DTYPES[config.dtype]
    assert dtype is not None
    models = load_models(
        config.model_path,
        config.drafter_path,
        config.diffusion_path,
        dtype,
        torch.device(config.device),
    )
    folder = config.tokenizer_path or config.model_path or config.diffusion_path
    assert folder is not None
    return assemble_engine(config, models, Tokenizer(folder), name=Path(folder).resolve().name)


def assemble_engine(
    config: EngineConfig, models: Models, tokenizer: Tokenizer, *, name: str = "model"
) -> DFastLLMEngine:
    """An engine around models that are loaded; `config` must be resolved."""
    check_models(models, tokenizer.vocab_size)
    _check_plain(config, models)
    max_model_len = _max_model_len(config, models)
    attention = _attention(config, models)
    num_pages = _num_pages(config, models, max_model_len, attention.page_size)
    runner = _model_runner(config, models, num_pages, attention)
    by_kernel = config.cpu_kernels and runner.device.type == "cpu"
    make_noise = kernel_gumbel() if by_kernel else gumbel
    draws = kernel_draws() if by_kernel else None
    sampler = TokenSampler(tokenizer, runner.device, make_noise, draws)
    context = _strategy_context(config, runner, sampler, max_model_len)
    available = _available(models)
    strategies = load_strategies(context, available, config.disabled_modes)
    pool = PagePool(num_pages, runner.page_size)
    floors = lower_floors(runner, context.verify_costs, config.host_cache_bytes)
    step_tokens = config.max_step_tokens or (2048 if runner.device.type == "cuda" else 256)
    batcher = RequestBatcher(
        BatcherConfig(config.max_batch_size, step_tokens),
        pool,
        PrefixCache(pool, enabled=config.prefix_cache, floors=floors),
        strategies,
    )
    steps = StepRunner(runner, sampler, strategies)
    return DFastLLMEngine(
        ContinuousBatchingEngine(batcher, steps),
        runner,
        tokenizer,
        model_name=config.model_name or name,
        max_model_len=max_model_len,
        default_mode=_default_mode(config, strategies, available),
        modes=tuple(sorted(strategies)),
        fingerprint=fingerprint(config, uses_kernels=runner.uses_kernels),
        defaults=config.options,
        page_tag=page_tag(
            runner,
            [folder for folder in (config.model_path, config.drafter_path) if folder],
            [config.dtype, attention.name, config.compile, config.use_8bit],
        ),
    )


def _attention(config: EngineConfig, models: Models) -> AttentionChoice:
    """The best that these models' pools and this machine allow."""
    first = models.first
    need = AttentionNeed(first.device, first.dtype, models.paged_shapes, config.page_size)
    choice = choose_attention(need, config.attention)
    if choice.refused:
        reasons = "; ".join(f"not {name}, it {why}" for name, why in choice.refused.items())
        logger.info("attention %s: %s", choice.name, reasons)
    return choice


def _model_runner(
    config: EngineConfig, models: Models, num_pages: int, attention: AttentionChoice
) -> ModelRunner:
    """The models with their pages: tested, on a CPU fused, and then as the config wants them."""
    runner = ModelRunner(
        models.verifier,
        models.drafter,
        num_pages=num_pages,
        page_size=attention.page_size,
        backend=attention.backend,
        diffusion=models.diffusion,
        canvas=models.canvas,
    )
    on_cpu = runner.device.type == "cpu"
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    again = check_against_eager(runner) if config.self_test else []
    _log_choices(models, attention, num_pages)
    if on_cpu:
        # On a GPU the operators' launch is not what a step waits for, and no run has tried it.
        runner.fuse_layers()
        if config.wants_kernels:
            _use_kernels(config, runner)
        for check in again:
            check()
    if config.use_8bit:
        quantize(runner, models)
    if config.compile:
        compile_forwards(runner, config.max_batch_size)
    return runner


def _use_kernels(config: EngineConfig, runner: ModelRunner) -> None:
    num_threads = config.num_threads or torch.get_num_threads()
    if not runner.use_kernels(num_threads):
        return
    runner.warm_up()
    logger.info(
        "CPU kernels: %d threads, fewer while other processes are on their cores; products in %s",
        num_threads,
        config.dtype,
    )
    if config.num_threads is not None:
        # Torch only samples now, and its threads would wait for those of the kernels.
        torch.set_num_threads(1)


def _check_plain(config: EngineConfig, models: Models) -> None:
    """A canvas model's forwards are neither compiled nor put in 8 bits yet."""
    chosen = {"compile": config.compile, "use_8bit": config.use_8bit}
    for name, is_chosen in chosen.items():
        if is_chosen and models.canvas is not None:
            raise UnsupportedModelError(f"{name} is not for {models.canvas.model_type} yet")


def _available(models: Models) -> frozenset[ModelRole]:
    named = {
        ModelRole.VERIFIER: models.verifier,
        ModelRole.DRAFTER: models.drafter,
        ModelRole.DIFFUSION: models.diffusion,
        ModelRole.CANVAS: models.canvas,
    }
    return frozenset(role for role, model in named.items() if model is not None)


def _default_mode(
    config: EngineConfig,
    strategies: dict[str, GenerationStrategy],
    available: frozenset[ModelRole],
) -> str:
    preferred = ("deer", "ar", "semi_ar", "diffusion")
    mode = config.default_mode or next((m for m in preferred if m in strategies), None)
    if mode is not None and mode in strategies:
        return mode
    offered = ", ".join(sorted(strategies)) or "none"
    wanting = "" if mode is None else _wanting(mode, available)
    raise ModeNotOfferedError(f"{mode}: {wanting}these models offer only {offered}")


def _wanting(mode: str, available: frozenset[ModelRole]) -> str:
    """Which models a mode would need, as the beginning of a message."""
    kind = strategy_kinds().get(mode)
    if kind is None:
        return "no strategy has this name, and "
    choices = dict.fromkeys(
        " and ".join(_ROLE_NAMES[role] for role in roles)
        for roles in missing_roles(kind, available)
    )
    return f"it needs {' or '.join(choices)}, too; " if any(choices) else ""


def _max_model_len(config: EngineConfig, models: Models) -> int:
    known = models.max_positions
    if config.max_model_len is not None and config.max_model_len > known:
        raise UnsupportedModelError(
            f"max_model_len is {config.max_model_len}, but the models know only {known} positions"
        )
    return config.max_model_len or known


def _num_pages(config: EngineConfig, models: Models, max_model_len: int, page_size: int) -> int:
    """Enough for a full batch of full contexts, or what the memory budget allows; and page 0."""
    first = models.first
    per_token = sum(bytes_per_token(shape, first.dtype) for shape in models.kv_shapes)
    per_page = per_token * page_size
    one_sequence = -(-max_model_len // page_size)
    wanted = one_sequence * config.max_batch_size
    budget = (config.kv_memory_bytes or _default_kv_memory(first.device)) // per_page
    if budget < one_sequence:
        raise UnsupportedModelError(
            f"one context of {max_model_len} tokens needs {one_sequence * per_page >> 20} MiB of "
            f"KV memory, but only {budget * per_page >> 20} MiB may be taken: "
            "lower max_model_len or raise the KV memory"
        )
    return min(wanted, budget) + 1


def _default_kv_memory(device: torch.device) -> int:
    """0.8 of what the accelerator has free; 2 GiB of host memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * 0.8)
    return 2 << 30


def _strategy_context(
    config: EngineConfig, runner: ModelRunner, sampler: TokenSampler, max_model_len: int
) -> StrategyContext:
    batches = batch_costs(runner)
    context = StrategyContext(
        block_size=runner.block_size,
        mask_token_id=runner.drafter.config.mask_token_id if runner.drafter else None,
        max_model_len=max_model_len,
        max_draft_length=config.max_draft_length,
        verify_costs=verify_costs(runner),
        draft_costs=batches.drafts,
        batch_costs=batches.verifies,
        sampler=sampler,
        defaults=config.options,
        diffusion=runner.diffusion.config if runner.diffusion else None,
        canvas=runner.canvas.config if runner.canvas else None,
        denoise_costs=denoise_costs(runner),
        entropy=config.entropy,
    )
    runner.counts.reset()  # what was run to measure costs served nobody
    return context


def _log_choices(models: Models, attention: AttentionChoice, num_pages: int) -> None:
    sizes = ", ".join(
        f"{name} {sum(p.numel() for p in module.parameters()) / 1e6:.1f} M parameters"
        for name, module in models.modules.items()
    )
    logger.info(
        "%s; %s on %s, attention %s, KV memory for %d tokens in pages of %d",
        sizes,
        models.first.dtype,
        models.first.device,
        attention.name,
        num_pages * attention.page_size,
        attention.page_size,
    )
