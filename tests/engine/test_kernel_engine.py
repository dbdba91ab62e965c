"""Whole engines on the CPU kernels: drafting changes no token, in any batch, on any threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.dfastllm_engine import DFastLLMEngine
from engine.models.causal_lm import load_causal_lm
from engine.models.diffusion_lm import ContextKind, DiffusionConfig, DiffusionLM
from engine.request.options import GenerationOptions as Options
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import (
    CPU,
    Ask,
    Result,
    batcher_of,
    check_nothing_leaked,
    load_models,
    make_engine,
    run_all,
    tokens,
)
from tests.engine.kernel_models import (
    DTYPES,
    MASK,
    STORED_AND_MULTIPLIED,
    save_draft_kind,
    save_kind,
)
from tests.engine.test_token_identity import both_happened, same
from tests.engine.tiny_tokenizers import make_byte_level

pytestmark = pytest.mark.usefixtures("all_helpers")

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0, "ignore_eos": True},
    {"temperature": 0.0, "frequency_penalty": 0.5, "ignore_eos": True},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 20, "ignore_eos": True},
    {"temperature": 1.0, "ignore_eos": True},
    {"temperature": 1.0, "min_p": 0.02, "repetition_penalty": 1.3},
]
ASKS = [
    Ask(tokens(4 + 17 * seed, seed), SamplingParams(seed=seed, max_tokens=24, **one))
    for seed, one in enumerate(SETTINGS * 2)
]
WAYS = {
    "deer": ("deer", Options()),
    "deer of 4": ("deer", Options(draft_length=4)),
    "spec_diff": ("spec_diff", Options(draft_length=3)),
    "spec_diff in 2": ("spec_diff", Options(draft_length=4, denoising_steps=2)),
    "ar": ("ar", Options()),
}
BESIDE = [
    Ask(tokens(count, 3), SamplingParams(seed=5, max_tokens=16, ignore_eos=True), "semi_ar")
    for count in (9, 40)
]
VARIANTS: dict[str, dict[str, Any]] = {
    "8 at once": {},
    "8 at once, 3 threads": {"num_threads": 3},
    "chunks of 7, no cache": {
        "max_step_tokens": 7,
        "min_prefill_tokens": 7,
        "prefix_cache": False,
        "page_size": 32,
    },
    "pre-emption": {"num_pages": 24, "num_threads": 2},
}
Maker = Callable[..., DFastLLMEngine]


@pytest.fixture(scope="module", params=STORED_AND_MULTIPLIED, ids=str)
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Engines with models of their own, because kernels take the weights over.

    The diffusion model has the verifier's weights, so that it agrees with it now and then.
    """
    stored, dtype = request.param[0], DTYPES[request.param[1]]
    folder: Path = tmp_path_factory.mktemp("kernels")
    path = save_kind(folder / "verifier", "qwen3", stored)
    drafter = save_draft_kind(folder / "drafter", stored, block_size=6)
    make_byte_level(path)

    def make_one(*, num_threads: int = 1, **settings: Any) -> DFastLLMEngine:
        backbone = load_causal_lm(path, dtype=dtype, device=CPU)
        twin = DiffusionLM(backbone, DiffusionConfig(MASK, True, ContextKind.CAUSAL))
        models = replace(load_models(path, drafter, dtype), diffusion=twin)
        engine = make_engine(models, **{"page_size": 16, **settings})
        engine._runner.fuse_layers()
        assert engine._runner.use_kernels(num_threads)
        return engine

    return make_one


@pytest.fixture(scope="module")
def expected(make: Maker) -> list[Result]:
    """Each alone, one token at a time, nothing cached."""
    engine = make(prefix_cache=False)
    return [run_all(engine, [one])[0] for one in [*ASKS, *BESIDE]]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_way_gives_the_tokens_of_ar_in_every_batch(
    make: Maker, expected: list[Result], name: str
) -> None:
    engine = make(**VARIANTS[name])
    ways = [list(WAYS)[(i + i // 5) % len(WAYS)] for i in range(len(ASKS))]
    asks = [
        replace(one, mode=WAYS[way][0], options=WAYS[way][1])
        for one, way in zip(ASKS, ways, strict=True)
    ]
    results = run_all(engine, [*asks, *BESIDE])
    same(results, expected)
    drafted = [one for one, way in zip(results, ways, strict=False) if way != "ar"]
    both_happened(drafted, at_least=2)
    assert (batcher_of(engine).stats.num_preemptions > 0) == (name == "pre-emption")
    check_nothing_leaked(engine)


def test_what_is_found_in_the_cache_gives_the_same_tokens(
    make: Maker, expected: list[Result]
) -> None:
    engine = make(num_threads=2)
    for mode in ("deer", "spec_diff", "ar"):
        again = run_all(engine, [replace(one, mode=mode) for one in ASKS])
        same(again, expected[: len(ASKS)])
    assert sum(one.summary.num_cached_tokens for one in again if one.summary) > 100
