"""Table `batching`: continuous batching against static batches and one request at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from random import Random

import torch

from benchmarks.configured import configured
from benchmarks.lanes import encoded
from benchmarks.options import Options
from benchmarks.prompts import prompts
from benchmarks.results import Cell, Chart, Table
from benchmarks.rounds import Sample, interleave, middle, percentile, ratio
from engine.build import build_engine
from engine.dfastllm_engine import DFastLLMEngine
from engine.request.sampling_params import SamplingParams
from engine.request.sequence import Sequence

MODES = ("ar", "deer")
LENGTHS = range(16, 129)
BATCH_ARRIVES_S = 0.04
"""In which as many requests come as a batch holds: faster than any way of batching serves them, so
that all places are taken until the last requests have begun."""
ONE = "one at a time"
COLUMNS = (
    "mode", "batching", "tokens/s", "x one at a time", "latency s p50", "p95", "first token s p50",
    "p95", "mean running",
)  # fmt: skip

Policy = Callable[[int], int]
"""Sequences that run -> how many may be running after the next admission."""


@dataclass(frozen=True)
class Arrival:
    """A request and when it comes, in seconds from the beginning."""

    sequence: Sequence
    at_s: float


@dataclass
class Log:
    """What became of the requests; times in seconds from each one's own arrival."""

    num_tokens: int = 0
    seconds: float = 0.0
    first_s: dict[str, float] = field(default_factory=dict)
    done_s: dict[str, float] = field(default_factory=dict)
    num_running: list[int] = field(default_factory=list)  # by step

    def figures(self) -> Sample:
        return {
            "tokens_s": self.num_tokens / self.seconds,
            "done_s_p50": percentile(self.done_s.values(), 0.5),
            "done_s_p95": percentile(self.done_s.values(), 0.95),
            "first_s_p50": percentile(self.first_s.values(), 0.5),
            "first_s_p95": percentile(self.first_s.values(), 0.95),
            "mean_running": sum(self.num_running) / len(self.num_running),
        }


def run(options: Options) -> Table:
    at_once = 64 if torch.cuda.is_available() else 16
    engine = build_engine(replace(configured(), max_batch_size=at_once))
    cases = {
        f"{mode}, {name}": partial(_sample, engine, options, mode, policy, at_once)
        for mode in MODES
        if mode in engine.modes
        for name, policy in policies(at_once).items()
    }
    samples = interleave(cases, options.num_rounds)
    rows = [_row(name, samples) for name in cases]
    bars = {
        mode: {
            name.partition(", ")[2]: middle(own, "tokens_s")
            for name, own in samples.items()
            if name.startswith(f"{mode}, ")
        }
        for mode in MODES
    }
    title = f"Continuous batching at {at_once} against static batches and one at a time"
    notes = (_note(options, at_once), *_NOTES)
    return Table("batching", title, COLUMNS, rows, notes, samples, Chart("tokens / s", bars))


_NOTES = (
    "continuous: a free place is taken at the next step. static: a batch is filled with who waits, "
    "and runs until its last one has ended. Medians over interleaved rounds, the same requests "
    "for all; `x one at a time` is the median of the rounds' own ratios.",
    "Latency and first token count from a request's arrival, so waiting is in them.",
)


def _note(options: Options, at_once: int) -> str:
    gap_ms = 1e3 * BATCH_ARRIVES_S / at_once
    return (
        f"{_count(options, at_once)} requests for {LENGTHS[0]} to {LENGTHS[-1]} tokens each, one "
        f"in {gap_ms:g} ms in the mean (at random, seeded); greedy, one process, prompts read "
        "within the time, prefix cache off."
    )


def _count(options: Options, at_once: int) -> int:
    return 6 if options.quick else 8 * at_once


def policies(at_once: int) -> dict[str, Policy]:
    """The ways of batching by their names."""
    return {
        f"continuous, {at_once}": lambda num_running: at_once,
        f"static, {at_once}": lambda num_running: num_running or at_once,
        ONE: lambda num_running: 1,
    }


def serve(engine: DFastLLMEngine, arrivals: list[Arrival], policy: Policy) -> Log:
    """Run all requests to their ends, each no sooner than it comes; first come, first served."""
    log, coming = Log(), deque(arrivals)
    num_running = 0
    at_s = {arrival.sequence.sequence_id: arrival.at_s for arrival in arrivals}
    started = time.perf_counter()
    while coming or num_running:
        now = time.perf_counter() - started
        limit = policy(num_running)
        while coming and num_running < limit and coming[0].at_s <= now:
            engine.add(coming.popleft().sequence)
            num_running += 1
        if not num_running:
            time.sleep(max(0.0, coming[0].at_s - now))
            continue
        log.num_running.append(num_running)
        for output in engine.step():
            name, now = output.sequence_id, time.perf_counter() - started
            log.num_tokens += len(output.token_ids)
            log.first_s.setdefault(name, now - at_s[name])
            if output.finish_reason is not None:
                log.done_s[name] = now - at_s[name]
                num_running -= 1
    log.seconds = time.perf_counter() - started
    return log


def _sample(
    engine: DFastLLMEngine, options: Options, mode: str, policy: Policy, at_once: int, number: int
) -> Sample:
    count = 3 if number < 0 else _count(options, at_once)
    times = _times(options.seed + number, count, BATCH_ARRIVES_S / at_once)
    arrivals = _arrivals(engine, options, mode, number, times)
    return serve(engine, list(arrivals), policy).figures()


def _times(seed: int, count: int, mean_gap_s: float) -> list[float]:
    rng = Random(seed)
    return list(accumulate(rng.expovariate(1 / mean_gap_s) for _ in range(count)))


def _arrivals(
    engine: DFastLLMEngine, options: Options, mode: str, number: int, times: list[float]
) -> Iterator[Arrival]:
    """The same in every case of a round, and others in every round."""
    seed = options.seed + 1000 * (number + 1)
    rng = Random(seed)
    asked = prompts(replace(options, seed=seed), len(times))
    for index, (at_s, prompt) in enumerate(zip(times, asked, strict=True)):
        num_tokens = 16 if options.quick else rng.choice(LENGTHS)
        params = SamplingParams(seed=index, temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        token_ids = encoded(engine, prompt, num_tokens)
        yield Arrival(engine.make_sequence(str(index), token_ids, params, mode=mode), at_s)


def _row(name: str, samples: dict[str, list[Sample]]) -> list[Cell]:
    own = samples[name]
    mode, _, batching = name.partition(", ")
    return [
        mode,
        batching,
        middle(own, "tokens_s"),
        ratio(own, samples[f"{mode}, {ONE}"], "tokens_s"),
        *(middle(own, f"{what}_s_{p}") for what in ("done", "first") for p in ("p50", "p95")),
        middle(own, "mean_running"),
    ]
