"""Table `queue_path`: what HTTP, Redis and the worker add to an engine that takes no time."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from benchmarks import claim_rate
from benchmarks.http_client import Client
from benchmarks.model_free import ServerPath, whole_path
from benchmarks.options import Options
from benchmarks.redis_watch import calls_by_script, counters, idle_rates
from benchmarks.results import Cell, Chart, Table
from benchmarks.rounds import Sample, interleave, middle, percentile
from engine.request.sampling_params import SamplingParams
from tests.fakes import FakeEngine

LOADS = {"1 at once": 1, "64 at once": 64}
PARTS = ("api", "worker", "valkey")
FILLED = "queue filled before"
PROMPT = "a prompt of some words, as short ones are"
_NOTES = (
    "A whole server (embedded Valkey, API, worker process) around the tests' fake engine, whose "
    "step takes no time. Unstreamed completions of one token.",
    "`added`: the answer's way from HTTP to HTTP less the same request on the engine alone.",
    f"`{FILLED}`: no HTTP; one worker whose queue holds all jobs when it starts, from its first "
    "claim to its last ending by Redis' clock.",
    "`scripts` and `commands` a job: EVALSHA calls, and all commands that Redis counts, those "
    "within scripts included. `reads` a job: how often Redis read from a socket, which is once "
    "a round trip; a pipeline is one. What the idle server sends in the same time is subtracted.",
    "`CPU`: of each process; the worker's start is in it where the queue was filled before.",
)


def run(options: Options) -> Table:
    with whole_path("tests.fake_worker", "--max-batch-size", "64") as path:
        alone_ms = _engine_alone_ms()
        cases = {
            name: lambda number, c=at_once: _sample(options, path, c)
            for name, at_once in LOADS.items()
        }
        num_jobs = 500 if options.quick else 5000
        cases[FILLED] = lambda number: claim_rate.measure(num_jobs, PROMPT)
        idle = _idle_rates(path, seconds=1.0 if options.quick else 6.0)
        samples = interleave(cases, options.num_rounds)
        scripts = {name: _scripts(path, at_once) for name, at_once in LOADS.items()}
    rows: list[list[Cell]] = [
        [name, *_figures(own, idle, alone_ms)] for name, own in samples.items()
    ]
    bars = {
        name: {"p50": middle(own, "ms_p50") - alone_ms, "p99": middle(own, "ms_p99") - alone_ms}
        for name, own in samples.items()
        if name in LOADS
    }
    return Table(
        "queue_path",
        "What HTTP and the queue add to a request",
        (
            "load",
            "added ms p50",
            "added ms p99",
            "jobs/s",
            "scripts/job",
            "commands/job",
            "reads/job",
            *(f"{part} CPU ms/job" for part in PARTS),
        ),
        rows,
        (
            *_NOTES,
            f"The engine alone: {alone_ms:.3f} ms.",
            _idle_note(idle),
            *_script_notes(scripts),
        ),
        {**samples, "idle, a second": idle},
        Chart("ms added", bars),
    )


def _idle_rates(path: ServerPath, seconds: float) -> dict[str, float]:
    before = path.cpu_s()
    rates = idle_rates(path.redis, seconds)
    after = path.cpu_s()
    return {**rates, **{f"{part}_cpu_s": (after[part] - before[part]) / seconds for part in after}}


def _idle_note(idle: dict[str, float]) -> str:
    parts = ", ".join(f"{part} {idle[f'{part}_cpu_s'] * 1e3:.1f} ms" for part in PARTS)
    return f"Idle, a second: {idle['commands']:.1f} commands; CPU {parts}."


def _scripts(path: ServerPath, at_once: int) -> dict[str, float]:
    """Calls of each script a job; in a run of its own, for watching is slow."""
    count = 20 * at_once if at_once == 1 else 5 * at_once
    calls = calls_by_script(path.redis, lambda: asyncio.run(_ask(path.port, count, at_once)))
    return {name: number / count for name, number in sorted(calls.items())}


def _script_notes(scripts: dict[str, dict[str, float]]) -> list[str]:
    return [
        f"Scripts a job, {load}: "
        + ", ".join(f"{name} {number:.2f}" for name, number in calls.items())
        + "."
        for load, calls in scripts.items()
    ]


def _figures(own: list[Sample], idle: dict[str, float], alone_ms: float) -> list[float]:
    def per_job(kind: str) -> float:
        noise = idle[kind] * middle(own, "seconds")
        return (middle(own, kind) - noise) / middle(own, "num_jobs")

    return [
        *(middle(own, kind) - alone_ms for kind in ("ms_p50", "ms_p99")),
        middle(own, "jobs_s"),
        *(per_job(kind) for kind in ("scripts", "commands", "reads")),
        *(middle(own, f"{part}_cpu_s") / middle(own, "num_jobs") * 1e3 for part in PARTS),
    ]


def _sample(options: Options, path: ServerPath, at_once: int) -> Sample:
    count = (20 if options.quick else 200) * (1 if at_once == 1 else 10)
    cpu_before, before = path.cpu_s(), counters(path.redis)
    started = time.perf_counter()
    latencies = asyncio.run(_ask(path.port, count, at_once))
    seconds = time.perf_counter() - started
    after, cpu_after = counters(path.redis), path.cpu_s()
    return {
        "num_jobs": count,
        "seconds": seconds,
        "jobs_s": count / seconds,
        "ms_p50": percentile(latencies, 0.5) * 1e3,
        "ms_p99": percentile(latencies, 0.99) * 1e3,
        **{kind: after[kind] - before[kind] for kind in after},
        **{f"{part}_cpu_s": cpu_after[part] - cpu_before[part] for part in cpu_after},
    }


async def _ask(port: int, count: int, at_once: int) -> list[float]:
    waiting = deque(range(count))
    latencies: list[float] = []

    async def work() -> None:
        async with Client(port) as client:
            while waiting:
                body = {"model": "fake", "prompt": PROMPT, "max_tokens": 1}
                body["seed"] = waiting.popleft()
                started = time.perf_counter()
                await client.post("/v1/completions", body)
                latencies.append(time.perf_counter() - started)

    await asyncio.gather(*(work() for _ in range(at_once)))
    return latencies


def _engine_alone_ms() -> float:
    engine = FakeEngine()
    times = []
    for index in range(200):
        started = time.perf_counter()
        token_ids = engine.tokenizer.encode(PROMPT)
        params = SamplingParams(seed=index, max_tokens=1)
        engine.add(engine.make_sequence(str(index), token_ids, params))
        engine.step()
        times.append(time.perf_counter() - started)
    return percentile(times, 0.5) * 1e3
