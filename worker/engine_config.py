"""From `VDIFF_*` settings to the engine's own configuration."""

from __future__ import annotations

from dataclasses import replace

from engine.build import EngineConfig
from engine.entropy_controller import EntropyConfig
from engine.request.options import GenerationOptions
from worker.settings import SettingsError, WorkerSettings


def engine_config(settings: WorkerSettings) -> EngineConfig:
    """Return what to build."""
    verifier, drafter = _models(settings)
    config = EngineConfig(
        model_path=verifier,
        drafter_path=drafter,
        tokenizer_path=settings.tokenizer,
        model_name=settings.model_name,
        device=settings.device,
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        max_batch_size=settings.max_batch_size if settings.enable_batching else 1,
        max_step_tokens=settings.max_step_tokens,
        kv_memory_bytes=None if settings.kv_cache_mb is None else settings.kv_cache_mb << 20,
        prefix_cache=settings.prefix_cache,
        host_cache_bytes=settings.prefix_cache_host_mb << 20,
        num_threads=settings.cpu_threads,
        cpu_kernels=settings.cpu_kernels,
        compile=settings.compile,
        use_8bit=settings.use_8bit,
        options=GenerationOptions(
            draft_length=settings.hybrid_draft_size,
            denoising_steps=settings.diffusion_steps,
            block_length=settings.block_size,
            apd_max_parallel=settings.apd_max_parallel,
            apd_threshold=settings.apd_threshold,
        ),
        disabled_modes=frozenset() if settings.enable_apd else frozenset({"apd"}),
        entropy=_entropy(settings),
    )
    if not settings.hybrid_enabled:
        config = replace(config, default_mode="ar")
    elif settings.hybrid_mode is not None:
        config = replace(config, default_mode=settings.hybrid_mode)
    if settings.hybrid_max_draft is not None:
        config = replace(config, max_draft_length=settings.hybrid_max_draft)
    if settings.flash_attention is not None:
        config = replace(config, attention="flash" if settings.flash_attention else "sdpa")
    return config


def _entropy(settings: WorkerSettings) -> EntropyConfig | None:
    if not settings.adaptive_entropy:
        return None
    given = {"low": settings.entropy_low, "high": settings.entropy_high}
    try:
        return EntropyConfig.from_dict({k: v for k, v in given.items() if v is not None})
    except ValueError as error:
        raise SettingsError(f"VDIFF_ENTROPY_LOW and VDIFF_ENTROPY_HIGH: {error}") from None


def _models(settings: WorkerSettings) -> tuple[str | None, str | None]:
    """Return the verifier or what stands alone, and what drafts: the engine tells their kinds."""
    if settings.ar_verifier_model is None:
        return settings.model, None
    return settings.ar_verifier_model, settings.model
