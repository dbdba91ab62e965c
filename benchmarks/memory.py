"""Table `memory`: the models' weights, and what 1,000 tokens of context take, by mode."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import nn

from benchmarks.configured import configured
from benchmarks.options import Options
from benchmarks.results import Cell, Chart, Table
from engine.build import build_engine, resolve
from engine.dfastllm_engine import DFastLLMEngine
from engine.engine_config import EngineConfig
from engine.models.kv_pool import KvShape, bytes_per_token
from engine.models.model_runner import ModelRunner
from engine.request.sampling_params import SamplingParams

MIB = 2**20
NEW_TOKENS = 8
COLUMNS = (
    "models of", "weights MiB", "verifier KV", "drafter context", "diffusion KV",
    "MiB / 1,000 tokens", "measured", "resident at start MiB", "more when full MiB",
)  # fmt: skip

ROLES = ("verifier", "drafter", "diffusion")
CASES: dict[str, tuple[str, frozenset[str]]] = {
    "ar": ("ar", frozenset({"verifier"})),
    "deer": ("deer", frozenset({"verifier", "drafter"})),
    "spec_diff, apd": ("spec_diff", frozenset({"verifier", "diffusion"})),
    "semi_ar, diffusion": ("semi_ar", frozenset({"diffusion"})),
    "all modes": ("deer", frozenset(ROLES)),
}
"""Modes that need the same models: one that is run, and which models those are."""

_NOTES = (
    "Engines with no models but those named. `verifier KV`, `drafter context`, `diffusion KV`: "
    "bytes a token by the models' shapes and dtype. An engine that has all three models keeps all "
    "three for every token, in whatever mode.",
    "`measured`: resident memory (on CUDA: allocated) of an engine whose several contexts are full "
    "less that of one whose single context is full, both in processes of their own. `more when "
    "full`: what filling all contexts of the larger engine has added; where the system hands out "
    "memory as it is first written, that is its keys and values, too.",
    "`resident at start`: the whole process with room for one context, Python, torch and all.",
)


@dataclass(frozen=True)
class Size:
    """What an engine in a process of its own takes; bytes."""

    num_kv_tokens: int
    at_start: int
    filled: int
    weights: int
    kv: Mapping[str, int]
    """Of one token, by role."""


def run(options: Options) -> Table:
    base = replace(resolve(configured()), max_batch_size=1)
    # Once each: nothing here changes from minute to minute.
    samples = {name: _sample(base, name, options) for name in _offered(base)}
    rows = [_row(name, own) for name, own in samples.items()]
    bars = {
        name: {"by shapes": own["shapes_mib_per_1000"], "measured": own["mib_per_1000"]}
        for name, own in samples.items()
    }
    title = "Memory of weights and of 1,000 tokens of context"
    return Table("memory", title, COLUMNS, rows, _NOTES, samples, Chart("MiB / 1,000 tokens", bars))


def resident_bytes() -> int:
    """Of this process, as the kernel counts it; on CUDA what torch has allocated there."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure_size(config: EngineConfig, mode: str) -> Size:
    """Build an engine in this process, which should be new, and fill all its contexts."""
    engine = build_engine(config)
    gc.collect()
    at_start = resident_bytes()
    _fill(engine, mode)
    gc.collect()
    runner = engine._runner
    return Size(
        runner.num_pages * runner.page_size, at_start, resident_bytes(), *_by_shapes(runner)
    )


def _by_shapes(runner: ModelRunner) -> tuple[int, dict[str, int]]:
    """Bytes of all weights, and of one token's keys and values by role."""
    modules: list[nn.Module] = []
    kv: dict[str, KvShape] = {}
    if runner.has_verifier:
        modules.append(runner.verifier.model)
        kv["verifier"] = runner.verifier.kv_shape
    if runner.drafter is not None:
        modules.append(runner.drafter)
        kv["drafter"] = runner.drafter.config.kv_shape
    if runner.diffusion is not None:
        modules.append(runner.diffusion.backbone.model)
        kv["diffusion"] = runner.diffusion.backbone.kv_shape
    tensors = {p.data_ptr(): p.nbytes for module in modules for p in module.parameters()}
    dtype = next(modules[0].parameters()).dtype
    num_bytes = sum(tensors.values()) + runner.num_packed_bytes
    return num_bytes, {role: bytes_per_token(x, dtype) for role, x in kv.items()}


def only(config: EngineConfig, roles: frozenset[str]) -> EngineConfig:
    """A resolved config without the models of other roles."""
    paths = dict(zip(ROLES, _paths(config), strict=True))
    verifier, drafter, diffusion = (paths[role] if role in roles else None for role in ROLES)
    return replace(
        config,
        model_path=verifier,
        drafter_path=drafter,
        diffusion_path=diffusion,
        tokenizer_path=config.tokenizer_path or config.model_path or config.diffusion_path,
        default_mode=None,
    )


def _paths(config: EngineConfig) -> tuple[str | None, str | None, str | None]:
    return config.model_path, config.drafter_path, config.diffusion_path


def _offered(config: EngineConfig) -> list[str]:
    there = {role for role, path in zip(ROLES, _paths(config), strict=True) if path is not None}
    return [name for name, (_, roles) in CASES.items() if roles <= there]


def _fill(engine: DFastLLMEngine, mode: str) -> None:
    length = engine.max_model_len - NEW_TOKENS
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
    for index in range(engine.max_batch_size):
        prompt = [5 + index] * length  # no prefix in common: nobody shares a page
        engine.add(engine.make_sequence(str(index), prompt, params, mode=mode))
    while engine.has_work:
        engine.step()


def _sample(base: EngineConfig, name: str, options: Options) -> dict[str, float]:
    mode, roles = CASES[name]
    config = only(base, roles)
    num_contexts = 4 if options.quick else 16
    small, large = (
        _in_new_process(replace(config, max_batch_size=size), mode) for size in (1, num_contexts)
    )
    more_tokens = large.num_kv_tokens - small.num_kv_tokens
    return {
        "weights_mib": large.weights / MIB,
        **{f"{role}_bytes_per_token": large.kv.get(role, 0) for role in ROLES},
        "shapes_mib_per_1000": 1000 * sum(large.kv.values()) / MIB,
        "mib_per_1000": 1000 * (large.filled - small.filled) / more_tokens / MIB,
        "at_start_mib": small.at_start / MIB,
        "more_when_full_mib": (large.filled - large.at_start) / MIB,
    }


def _in_new_process(config: EngineConfig, mode: str) -> Size:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_size, config, mode).result()


def _row(name: str, sample: Mapping[str, float]) -> list[Cell]:
    kv = [int(sample[f"{role}_bytes_per_token"]) for role in ROLES]
    figures = ("shapes_mib_per_1000", "mib_per_1000", "at_start_mib", "more_when_full_mib")
    return [
        name,
        sample["weights_mib"],
        *(f"{size} B" if size else "-" for size in kv),
        *(sample[figure] for figure in figures),
    ]
