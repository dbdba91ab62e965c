"""Table `threads`: forwards and tokens/s by threads, quiet and beside busy processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from benchmarks.configured import configured
from benchmarks.lanes import Lane
from benchmarks.load import completion, model_name, run_streams
from benchmarks.options import Options
from benchmarks.prompts import prompts
from benchmarks.results import Cell, Chart, Table
from benchmarks.rounds import Sample, interleave, middle, paired, percentile
from benchmarks.server import served
from engine.build import build_engine
from engine.dfastllm_engine import DFastLLMEngine
from engine.engine_config import EngineConfig
from engine.models.cpu.attendance import Attendance
from engine.models.cpu.runner import KernelRunner
from engine.models.packing import Span
from engine.request.options import NO_OPTIONS
from worker.cpu_threads import available_cores

NEIGHBOURS = (0, 1, 2)
FORWARDS = {"verify 1": (1, 1), "verify 8": (8, 1), "verify 64": (16, 4)}
"""Sequences, and rows of each."""
CONTEXT = 200
MODES, LOADS = ("ar", "deer"), (1, 8, 16)
WRITING = [f"{mode} {load}" for mode in MODES for load in LOADS]
COLUMNS = (
    "beside", "threads", *(f"{name} ms" for name in (*FORWARDS, "draft")),
    *(f"{name} tokens/s" for name in WRITING), "x one thread", "tokens / CPU s", "others' cores",
)  # fmt: skip
_BUSY = "while True: pass"
_NOTES = (
    f"`verify n`: mean ms of a verifier forward of n rows behind {CONTEXT} tokens of context (64: "
    "16 sequences of 4); `draft`: of a drafter forward for one sequence; without the sampling. "
    "`ar 8`: tokens/s of eight sequences that decode, T = 0, prompts read outside of the time. "
    "Medians over interleaved rounds.",
    "`beside`: so many Python processes that do nothing but run. `the server`: over HTTP, where "
    "API, queue and client are the neighbours, and prompts are read within the time.",
    "`always`: nobody is left out of the team while cores are taken (`cpu/attendance.py`).",
    "`x one thread`: geometric mean over the loads of tokens/s by those of one thread in the same "
    "round; of that the median. `tokens / CPU s`: of all loads together. `others' cores`: what all "
    "other processes used, the busy ones among them: beside nobody it should be nothing.",
)


class _Always(Attendance):
    """Never leaves anybody out."""

    def note(self, size: int, seconds: float, cpu_seconds: float, now: float) -> None:
        pass


def run(options: Options) -> Table:
    cases = in_process_cases(options, configured())
    samples = interleave(cases, options.num_rounds)
    samples |= _served_samples(options)
    rows = [_row(name, samples) for name in samples]
    bars = {
        f"{beside or 'no'} busy": {
            threads: middle(samples[f"{beside} {threads}"], "deer 8") for threads in _sizes()
        }
        for beside in NEIGHBOURS
    }
    title = "Forwards and tokens a second by threads, beside busy processes"
    chart = Chart("tokens / s, deer, 8 at once", bars)
    return Table("threads", title, COLUMNS, rows, _NOTES, samples, chart)


def in_process_cases(options: Options, config: EngineConfig) -> dict[str, Callable[[int], Sample]]:
    """By neighbours and threads; the engines differ in nothing else."""
    engines = {name: _engine(config, name, size) for name, size in _sizes().items()}
    return {
        f"{beside} {name}": partial(_measure, options, engine, beside)
        for beside in NEIGHBOURS
        for name, engine in engines.items()
    }


def _sizes() -> dict[str, int]:
    most = max(2, available_cores())
    return {"1": 1, f"{most}": most, f"{most} always": most}


def _engine(config: EngineConfig, name: str, size: int) -> DFastLLMEngine:
    engine = build_engine(replace(config, num_threads=size))
    kernels = engine._runner._kernels
    assert isinstance(kernels, KernelRunner), "without the kernels there is no team"
    if name.endswith("always"):
        kernels.team._attendance = _Always(size)
    return engine


@contextmanager
def _neighbours(count: int) -> Iterator[None]:
    busy = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    try:
        if busy:
            time.sleep(0.2)  # until they are on their cores
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def _measure(options: Options, engine: DFastLLMEngine, beside: int, number: int) -> Sample:
    is_short = options.quick or number < 0
    found: dict[str, float] = {}
    with _neighbours(beside):
        started, others = time.perf_counter(), _others_seconds()
        for name, forward in _forwards(engine).items():
            found[name] = _mean_ms(forward, 0.02 if is_short else 0.2)
        num_tokens = cpu_seconds = 0.0
        for mode in MODES:
            for load in LOADS:
                lane = Lane(mode, engine, mode, NO_OPTIONS)
                seed = options.seed + 1000 * (number + 1)
                lane.open(prompts(replace(options, seed=seed), load), 64, 0.0)
                cpu_started = time.process_time()
                done = lane.advance((8 if is_short else 64) * max(load, 4))
                cpu_seconds += time.process_time() - cpu_started
                lane.close()
                num_tokens += done["num_tokens"]
                found[f"{mode} {load}"] = done["num_tokens"] / done["seconds"]
        others_cores = (_others_seconds() - others) / (time.perf_counter() - started)
    return {**found, "tokens_cpu_s": num_tokens / cpu_seconds, "others_cores": others_cores}


def _others_seconds() -> float:
    """What all cores have run so far, without this process; see proc_stat(5)."""
    first = Path("/proc/stat").read_text().split("\n", 1)[0]
    user, nice, system, _idle, _wait, *interrupts = map(int, first.split()[1:8])
    ticks = user + nice + system + sum(interrupts)
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def _forwards(engine: DFastLLMEngine) -> dict[str, Callable[[], Any]]:
    runner = engine._runner
    found: dict[str, Callable[[], Any]] = {}
    for name, (num_sequences, num_rows) in FORWARDS.items():
        spans = [_span(runner.page_size, i, num_rows) for i in range(num_sequences)]
        rows = list(range(num_sequences * num_rows))
        found[name] = partial(runner.verify, spans, rows)
    block = _span(runner.page_size, 0, runner.block_size)
    found["draft"] = partial(runner.draft, [block], [runner.block_size - 1])
    return found


def _span(page_size: int, index: int, num_rows: int) -> Span:
    num_pages = -(-(CONTEXT + num_rows) // page_size)
    first = 1 + index * num_pages
    return Span([5] * num_rows, CONTEXT, list(range(first, first + num_pages)))


def _mean_ms(forward: Callable[[], Any], seconds: float) -> float:
    """The mean, and not the median: what a neighbour takes comes in a few long pieces."""
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        forward()
        count += 1
    return 1e3 * (time.perf_counter() - started) / count


def _served_samples(options: Options) -> dict[str, list[Sample]]:
    sizes = {name: size for name, size in _sizes().items() if "always" not in name}
    most = list(sizes)[-1]
    with served(CPU_THREADS="1") as one, served(CPU_THREADS=most) as all_of_them:
        ports = dict(zip(sizes, (one.port, all_of_them.port), strict=True))
        model = model_name(one.port)
        return interleave(
            {f"server {n}": partial(_over_http, options, p, model) for n, p in ports.items()},
            options.num_rounds,
        )


def _over_http(options: Options, port: int, model: str, number: int) -> Sample:
    num_tokens = 16 if options.quick or number < 0 else 64
    found: dict[str, float] = {}
    for mode in MODES:
        for load in LOADS:
            seed = options.seed + 1000 * (number + 1)
            asked = prompts(replace(options, seed=seed), max(2, load))
            fields = {"model": model, "mode": mode, "temperature": 0, "max_tokens": num_tokens}
            salt = f"{mode} {load} {number}"  # nobody finds what another case has read
            requests = [
                completion(prompt, ignore_eos=True, cache_salt=salt, **fields) for prompt in asked
            ]
            found[f"{mode} {load}"] = run_streams(port, requests, load).figures()["tokens_s"]
    return found


def _row(name: str, samples: Mapping[str, list[Sample]]) -> list[Cell]:
    own, (beside, threads) = samples[name], name.split(" ", 1)
    base = samples[f"{beside} 1"]
    gains = zip(*(paired(own, base, load) for load in WRITING), strict=True)
    gain = percentile((prod(ratios) ** (1 / len(ratios)) for ratios in gains), 0.5)
    keys = (*FORWARDS, "draft", *WRITING)
    figures = [_shown(own, key) for key in keys]
    what = {"0": "nobody", "server": "the server"}.get(beside, f"{beside} busy")
    return [what, threads, *figures, gain, _shown(own, "tokens_cpu_s"), _shown(own, "others_cores")]


def _shown(samples: Sequence[Sample], key: str) -> Cell:
    return middle(samples, key) if key in samples[0] else "-"
