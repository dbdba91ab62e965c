"""Tokens in, tokens out: the inference engine. It knows no HTTP, no queue and no wire.

`__all__` is its face. A name is imported when it is first asked for, so that `import engine` alone,
and whoever needs one floor of it, does not wait for torch and transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.base import Cacheable, Generator, HasStats
    from engine.build import build_engine
    from engine.cache.prefix_cache import PrefixCache
    from engine.continuous_batching import ContinuousBatchingEngine, RequestBatcher
    from engine.decoding.diffusion_sampler import DiffusionSampler
    from engine.dfastllm_engine import Completion, DFastLLMEngine
    from engine.engine_config import EngineConfig
    from engine.entropy_controller import (
        EntropyAdaptiveController,
        EntropyAwareDraftController,
        EntropyConfig,
    )
    from engine.generation.strategy import GenerationStrategy
    from engine.hybrid_engine import (
        APDDecoder,
        HybridConfig,
        HybridEngine,
        HybridStats,
        SemiAREngine,
        SpecDiffEngine,
    )
    from engine.request.options import GenerationOptions
    from engine.request.sampling_params import SamplingParams

__all__ = [
    "APDDecoder",
    "Cacheable",
    "Completion",
    "ContinuousBatchingEngine",
    "DFastLLMEngine",
    "DiffusionSampler",
    "EngineConfig",
    "EntropyAdaptiveController",
    "EntropyAwareDraftController",
    "EntropyConfig",
    "GenerationOptions",
    "GenerationStrategy",
    "Generator",
    "HasStats",
    "HybridConfig",
    "HybridEngine",
    "HybridStats",
    "PrefixCache",
    "RequestBatcher",
    "SamplingParams",
    "SemiAREngine",
    "SpecDiffEngine",
    "build_engine",
]

_HOMES = (  # ground first: what is low is cheaper to import
    "base",
    "request.options",
    "request.sampling_params",
    "entropy_controller",
    "decoding.diffusion_sampler",
    "cache.prefix_cache",
    "generation.strategy",
    "continuous_batching",
    "engine_config",
    "dfastllm_engine",
    "build",
    "hybrid_engine",
)


def __getattr__(name: str) -> object:
    if name in __all__:
        for home in _HOMES:
            module = import_module(f"{__name__}.{home}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
