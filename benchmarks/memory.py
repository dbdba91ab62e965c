"""Table `memory`: the models' weights, and what 1,000 tokens of context take, by mode."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn

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
NUM_CONTEXTS = 4
COLUMNS = (
    "models of", "weights MiB", "verifier KV", "drafter context", "diffusion KV",
    "MiB / 1,000 tokens", "written", "resident at start MiB",
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
    "`written`: of the engine's pools, zeroed before, what is not zero any more after contexts "
    "were filled in the row's first mode, by the tokens read and written. Resident memory does "
    "not tell: pools are handed out as they are first written.",
    "`resident at start`: the whole process with room for four contexts, Python, torch and all.",
)


@dataclass(frozen=True)
class Size:
    """What an engine in a process of its own takes; bytes."""

    at_start: int
    written_per_token: float
    weights: int
    kv: Mapping[str, int]
    """Of one token, by role."""


def run(options: Options) -> Table:
    base = replace(resolve(configured()), max_batch_size=NUM_CONTEXTS)
    # Once each: nothing here changes from minute to minute.
    samples = {name: _sample(base, name) for name in _offered(base)}
    rows = [_row(name, own) for name, own in samples.items()]
    bars = {
        name: {"by shapes": own["shapes_mib_per_1000"], "written": own["written_mib_per_1000"]}
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
    tensors = list(_kv_tensors(engine._runner))
    for tensor in tensors:
        tensor.zero_()
    num_tokens = _fill(engine, mode)
    written = sum(_num_written(tensor) * tensor[0, 0].nbytes for tensor in tensors)
    return Size(at_start, written / num_tokens, *_by_shapes(engine._runner))


def _kv_tensors(runner: ModelRunner) -> Iterator[Tensor]:
    """Keys or values of one layer each: [pages, page_size, Hkv, D]."""
    for pool in (runner._pool, runner._context_pool, runner._diffusion_pool):
        if pool is not None:
            yield from (*pool._keys, *pool._values)


def _num_written(tensor: Tensor) -> int:
    """Slots of tokens that are not zero."""
    return int(tensor.flatten(2).any(-1).sum())


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


def _fill(engine: DFastLLMEngine, mode: str) -> int:
    """Tokens that were read and written; the last of a context needs no keys and values."""
    length = engine.max_model_len - NEW_TOKENS
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
    for index in range(engine.max_batch_size):
        prompt = [5 + index] * length  # no prefix in common: nobody shares a page
        engine.add(engine.make_sequence(str(index), prompt, params, mode=mode))
    while engine.has_work:
        engine.step()
    return engine.max_batch_size * (length + NEW_TOKENS - 1)


def _sample(base: EngineConfig, name: str) -> dict[str, float]:
    mode, roles = CASES[name]
    size = _in_new_process(only(base, roles), mode)
    return {
        "weights_mib": size.weights / MIB,
        **{f"{role}_bytes_per_token": size.kv.get(role, 0) for role in ROLES},
        "shapes_mib_per_1000": 1000 * sum(size.kv.values()) / MIB,
        "written_mib_per_1000": 1000 * size.written_per_token / MIB,
        "at_start_mib": size.at_start / MIB,
    }


def _in_new_process(config: EngineConfig, mode: str) -> Size:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_size, config, mode).result()


def _row(name: str, sample: Mapping[str, float]) -> list[Cell]:
    kv = [int(sample[f"{role}_bytes_per_token"]) for role in ROLES]
    figures = ("shapes_mib_per_1000", "written_mib_per_1000", "at_start_mib")
    return [
        name,
        sample["weights_mib"],
        *(f"{size} B" if size else "-" for size in kv),
        *(sample[figure] for figure in figures),
    ]
