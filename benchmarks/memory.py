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
from engine.engine_config import EngineConfig
from engine.models.kv_pool import KvShape, bytes_per_token
from engine.models.model_runner import ModelRunner

MIB = 2**20
NUM_CONTEXTS = 4
COLUMNS = (
    "models of", "weights MiB", "verifier KV", "drafter context", "diffusion KV",
    "MiB / 1,000 tokens", "resident at start MiB",
)  # fmt: skip

ROLES = ("verifier", "drafter", "diffusion")
CASES: dict[str, frozenset[str]] = {
    "ar": frozenset({"verifier"}),
    "deer": frozenset({"verifier", "drafter"}),
    "spec_diff, apd": frozenset({"verifier", "diffusion"}),
    "semi_ar, diffusion": frozenset({"diffusion"}),
    "all modes": frozenset(ROLES),
}
"""Modes that need the same models, and which models those are."""

_NOTES = (
    "Engines with no models but those named. `verifier KV`, `drafter context`, `diffusion KV`: "
    "bytes a token by the models' shapes and dtype. An engine that has all three models keeps all "
    "three for every token, in whatever mode.",
    "What a context takes is not measured: pools are handed out as they are first written, and "
    "resident memory tells of other things as well.",
    "`resident at start`: the whole process with room for four contexts, Python, torch and all.",
)


@dataclass(frozen=True)
class Size:
    """What an engine in a process of its own takes; bytes."""

    at_start: int
    weights: int
    kv: Mapping[str, int]
    """Of one token, by role."""


def run(options: Options) -> Table:
    base = replace(resolve(configured()), max_batch_size=NUM_CONTEXTS)
    # Once each: nothing here changes from minute to minute.
    samples = {name: _sample(base, name) for name in _offered(base)}
    rows = [_row(name, own) for name, own in samples.items()]
    bars = {name: {"by shapes": own["shapes_mib_per_1000"]} for name, own in samples.items()}
    title = "Memory of weights and of 1,000 tokens of context"
    return Table("memory", title, COLUMNS, rows, _NOTES, samples, Chart("MiB / 1,000 tokens", bars))


def resident_bytes() -> int:
    """Of this process, as the kernel counts it; on CUDA what torch has allocated there."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure_size(config: EngineConfig) -> Size:
    """Build an engine in this process, which should be new."""
    engine = build_engine(config)
    gc.collect()
    return Size(resident_bytes(), *_by_shapes(engine._runner))


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
    return [name for name, roles in CASES.items() if roles <= there]


def _sample(base: EngineConfig, name: str) -> dict[str, float]:
    size = _in_new_process(only(base, CASES[name]))
    return {
        "weights_mib": size.weights / MIB,
        **{f"{role}_bytes_per_token": size.kv.get(role, 0) for role in ROLES},
        "shapes_mib_per_1000": 1000 * sum(size.kv.values()) / MIB,
        "at_start_mib": size.at_start / MIB,
    }


def _in_new_process(config: EngineConfig) -> Size:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_size, config).result()


def _row(name: str, sample: Mapping[str, float]) -> list[Cell]:
    kv = [int(sample[f"{role}_bytes_per_token"]) for role in ROLES]
    figures = ("shapes_mib_per_1000", "at_start_mib")
    return [
        name,
        sample["weights_mib"],
        *(f"{size} B" if size else "-" for size in kv),
        *(sample[figure] for figure in figures),
    ]
