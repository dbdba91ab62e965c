"""The composition root: the only place where concrete parts are chosen and put together."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from engine.cache.page_pool import PagePool
from engine.cache.prefix_cache import PrefixCache
from engine.continuous_batching import BatcherConfig, ContinuousBatchingEngine, RequestBatcher
from engine.dfastllm_engine import DFastLLMEngine
from engine.generation.registry import load_strategies
from engine.generation.step_runner import StepRunner
from engine.generation.strategy import ModelRole, StrategyContext
from engine.models.attention import choose_backend
from engine.models.causal_lm import CausalLM, UnsupportedModelError
from engine.models.dflash import DFlashDrafter
from engine.models.fused_drafter import fuse_drafter
from engine.models.kv_pool import bytes_per_token
from engine.models.loader import check_pair, load_pair
from engine.models.model_runner import ModelRunner
from engine.models.packing import Span
from engine.models.self_test import check_against_eager
from engine.models.token_sampler import TokenSampler
from engine.request.tokenizer import Tokenizer

logger = logging.getLogger("dfastllm.engine")

EMBEDDED = Path(__file__).parent / "weights"
EMBEDDED_NAME = "dfastllm-embedded"


class ModeNotOfferedError(UnsupportedModelError):
    """A default mode for which there is no strategy, or not the models that it needs."""


@dataclass(frozen=True)
class EngineConfig:
    """What to serve, and how much of it at once."""

    model_path: str | None = None  # the verifier; None: the models shipped with the package
    drafter_path: str | None = None
    tokenizer_path: str | None = None  # None: beside the verifier
    model_name: str | None = None  # None: the folder's name
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "auto"
    max_model_len: int | None = None  # None: what the verifier was trained for
    max_batch_size: int = 16
    max_step_tokens: int | None = None
    page_size: int = 16
    kv_memory_bytes: int | None = None
    default_mode: str | None = None  # None: deer where there is a drafter, else ar
    max_draft_length: int = 15
    prefix_cache: bool = True
    self_test: bool = True

    def __post_init__(self) -> None:
        names = ("max_batch_size", "page_size", "max_draft_length", "max_model_len")
        for name in (*names, "max_step_tokens", "kv_memory_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {self.dtype!r}")


_DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def build_engine(config: EngineConfig | None = None) -> DFastLLMEngine:
    """Load the models, test them, measure what their forwards cost, and join the parts."""
    config = resolve(config or EngineConfig())
    device = torch.device(config.device)
    dtype = _DTYPES[config.dtype]
    assert dtype is not None and config.model_path is not None
    verifier, drafter = load_pair(config.model_path, config.drafter_path, dtype, device)
    tokenizer = Tokenizer(config.tokenizer_path or config.model_path)
    check_pair(verifier, drafter, tokenizer.vocab_size)
    backend = choose_backend(device, dtype, config.attention)
    max_model_len = config.max_model_len or verifier.max_positions
    if max_model_len > verifier.max_positions:
        raise UnsupportedModelError(
            f"max_model_len is {max_model_len}, but the verifier knows only "
            f"{verifier.max_positions} positions"
        )
    num_pages = _num_pages(config, verifier, drafter, max_model_len)
    runner = ModelRunner(
        verifier, drafter, num_pages=num_pages, page_size=config.page_size, backend=backend
    )
    if config.self_test:
        # On a GPU the operators' launch is not what a step waits for, and no run has tried it.
        check_against_eager(runner, fuse=device.type == "cpu")
    if drafter is not None and device.type == "cpu":
        fuse_drafter(drafter)
    pool = PagePool(num_pages, config.page_size)
    prefix_cache = PrefixCache(pool, enabled=config.prefix_cache)
    context = _strategy_context(config, runner, max_model_len)
    runner.counts.reset()  # what was run to measure costs served nobody
    available = frozenset({ModelRole.VERIFIER} | ({ModelRole.DRAFTER} if drafter else set()))
    strategies = load_strategies(context, available)
    default_mode = config.default_mode or ("deer" if drafter else "ar")
    if default_mode not in strategies:
        offered = ", ".join(sorted(strategies))
        raise ModeNotOfferedError(f"{default_mode}: these models offer only {offered}")
    step_tokens = config.max_step_tokens or (2048 if device.type == "cuda" else 256)
    batcher = RequestBatcher(
        BatcherConfig(config.max_batch_size, step_tokens), pool, prefix_cache, strategies
    )
    steps = StepRunner(runner, TokenSampler(tokenizer, device), strategies)
    model_name = config.model_name or Path(config.model_path).resolve().name
    _log_choices(model_name, verifier, drafter, backend.__name__, num_pages * config.page_size)
    return DFastLLMEngine(
        ContinuousBatchingEngine(batcher, steps),
        runner,
        tokenizer,
        model_name=model_name,
        max_model_len=max_model_len,
        default_mode=default_mode,
        modes=tuple(sorted(strategies)),
        fingerprint=_fingerprint(config, dtype),
    )


def resolve(config: EngineConfig) -> EngineConfig:
    """Replace every "auto" by what this machine has."""
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = config.dtype
    if dtype == "auto":
        # On CPUs without bf16 units, bf16 matrix products are several times slower than fp32.
        dtype = "float32" if device == "cpu" else "bfloat16"
    config = replace(config, device=device, dtype=dtype)
    if config.model_path is None:
        config = replace(
            config,
            model_path=str(EMBEDDED / "verifier"),
            drafter_path=config.drafter_path or str(EMBEDDED / "drafter"),
            model_name=config.model_name or EMBEDDED_NAME,
        )
    return config


def _num_pages(
    config: EngineConfig, verifier: CausalLM, drafter: DFlashDrafter | None, max_model_len: int
) -> int:
    """Enough for a full batch of full contexts, or what the memory budget allows; and page 0."""
    shape = verifier.kv_shape
    per_token = bytes_per_token(
        shape.num_layers, shape.num_kv_heads, shape.head_dim, verifier.dtype
    )
    if drafter is not None:
        own = drafter.config
        per_token += bytes_per_token(own.num_layers, own.num_kv_heads, own.head_dim, verifier.dtype)
    per_page = per_token * config.page_size
    one_sequence = -(-max_model_len // config.page_size)
    wanted = one_sequence * config.max_batch_size
    budget = (config.kv_memory_bytes or _default_kv_memory(verifier.device)) // per_page
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
    config: EngineConfig, runner: ModelRunner, max_model_len: int
) -> StrategyContext:
    return StrategyContext(
        block_size=runner.block_size,
        mask_token_id=runner.drafter.config.mask_token_id if runner.drafter else None,
        max_model_len=max_model_len,
        max_draft_length=config.max_draft_length,
        verify_costs=[(n, _seconds(runner, n)) for n in (1, 4, 16, 64, 128)],
        draft_costs=[(n, _draft_seconds(runner, n)) for n in (1, 4, 16)] if runner.drafter else [],
    )


def _seconds(runner: ModelRunner, num_rows: int) -> float:
    """Best of five forwards over `num_rows` rows, four to a sequence, all on the scratch page."""
    width = min(num_rows, 4)
    pages = [0] * -(-width // runner.page_size)
    spans = [Span([0] * width, 0, pages) for _ in range(num_rows // width)]
    return _best_of(5, lambda: runner.verify(spans, list(range(num_rows))))


def _draft_seconds(runner: ModelRunner, num_blocks: int) -> float:
    size = runner.block_size
    blocks = [Span([0] * size, 1, [0]) for _ in range(num_blocks)]
    return _best_of(5, lambda: runner.draft(blocks, [size - 1] * num_blocks))


def _best_of(times: int, forward: Callable[[], Tensor]) -> float:
    best = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        forward().max().item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return best


def _fingerprint(config: EngineConfig, dtype: torch.dtype) -> str:
    """Equal for two workers only where a rerun on the other gives the same tokens."""
    digest = hashlib.blake2b(digest_size=12)
    for folder in (config.model_path, config.drafter_path, config.tokenizer_path):
        for file in sorted(Path(folder).glob("*")) if folder else ():
            if file.is_file() and file.suffix in (".json", ".safetensors", ".jinja"):
                digest.update(file.name.encode())
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "blake2b").digest())
    digest.update(json.dumps([str(dtype), config.device]).encode())
    return digest.hexdigest()


def _log_choices(
    name: str, verifier: CausalLM, drafter: DFlashDrafter | None, backend: str, num_tokens: int
) -> None:
    own = 0 if drafter is None else sum(p.numel() for p in drafter.parameters())
    logger.info(
        "model %s: verifier %.1f M parameters, drafter %.1f M, %s on %s, attention %s, "
        "KV memory for %d tokens",
        name,
        verifier.num_parameters / 1e6,
        own / 1e6,
        verifier.dtype,
        verifier.device,
        backend,
        num_tokens,
    )
