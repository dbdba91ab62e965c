"""Table `concurrency`: ar, every fixed draft length and the planner, from 1 to 64 at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from benchmarks.configured import configured
from benchmarks.grid import TEMPERATURES
from benchmarks.lanes import Lane
from benchmarks.options import Options
from benchmarks.prompts import prompts
from benchmarks.race import FAR_BEHIND, Piece, RaceRules, race, rate
from benchmarks.results import Cell, Chart, Table, shown
from benchmarks.rounds import Sample, ratio, spread
from engine.build import build_engine, resolve
from engine.dfastllm_engine import DFastLLMEngine
from engine.engine_config import EngineConfig
from engine.request.options import NO_OPTIONS, GenerationOptions

LOADS = (1, 2, 4, 8, 16, 32, 64)
CUDA_LOADS = (*LOADS, 128, 256)
PROMPT_TOKENS = 128
TEXT_TOKENS = 128
"""Of a sequence, before the next prompt takes its place."""
CONTEXT = 512
"""A sequence may run ahead of its batch by a good deal before it comes to an end."""
ROUNDS = 2
"""For one of `--rounds`, and twice that up to 8 at once, where a round has but a few texts."""
WARM_TOKENS = 2048
"""Of ar and of the planner before a load is measured, and 64 of each sequence at least: the planner
has learnt what it learns at first."""

MAX_LANES = 10
PLANNER, AR, AR_AGAIN = "planner", "ar", "ar again"
PLANNED = "deer, planned"
"""Its mode."""

_NOTES = (
    "Always so many sequences that decode: prompts are read outside of the time, and nobody "
    "leaves within it. All settings get through the same texts in turn, 8 tokens of each sequence "
    "(32 at least) at a time; a round is 512 tokens, or 32 of each sequence.",
    f"tokens/s: all tokens by all time. A setting below {FAR_BEHIND:g} of the fastest after a "
    "third of the rounds stops there (*).",
    "`x best`: the planner by the better of ar and the best fixed length, over all rounds; where "
    "90 % of such figures fall when rounds are drawn anew (bootstrap); and the median of the "
    "rounds' own ratios. The best is chosen after the fact, to the planner's disadvantage.",
    "`first`: the planner by ar in what was written before at that load, other texts in turn: its "
    "first drafts, which it makes once, and its first looks at batches of this size.",
    "`ar again`: a second batch of ar by the first, which should be 1: what such a ratio is worth. "
    "The planner learns from its own drafts, not from those of the fixed lengths.",
)


class Measured(NamedTuple):
    """What was found at one load."""

    samples: dict[str, list[Sample]]  # of every setting, by its name
    first: float  # the planner's rate by that of ar, before


def run(options: Options) -> Table:
    bench = ConcurrencyBench(options)
    loads = [(temperature, at_once) for temperature in TEMPERATURES for at_once in bench.loads]
    return table({load: bench.measure(*load) for load in loads})


def table(measured: Mapping[tuple[float, int], Measured]) -> Table:
    """By temperature and sequences at once."""
    rows: list[list[Cell]] = []
    samples: dict[str, object] = {}
    bars: dict[str, dict[str, float]] = {}
    lowest: tuple[float, str] = (float("inf"), "nothing")
    names: list[str] = []
    for (temperature, at_once), found in measured.items():
        load = f"T = {temperature:g}, {at_once} at once"
        samples[load] = {**found.samples, "first": found.first}
        names, best = list(found.samples), best_of(found.samples)
        rows.append([f"{temperature:g}", at_once, *_cells(found, best)])
        bars[load.replace(", ", "\n")] = {
            name: rate(found.samples[own])
            for name, own in {AR: AR, "best": best, PLANNER: PLANNER}.items()
        }
        lowest = min(lowest, (rate(found.samples[PLANNER]) / rate(found.samples[best]), load))
    note = f"The lowest `x best` of all loads: {lowest[0]:.3f} ({lowest[1]})."
    return Table(
        "concurrency",
        "The planner against ar and every fixed draft length, by load",
        ("T", "at once", *_columns(names)),
        rows,
        (note, *_NOTES),
        samples,
        Chart("tokens / s", bars),
    )


class ConcurrencyBench:
    """All settings as lanes on one engine: the same weights at the same place, the same pages."""

    def __init__(self, options: Options, config: EngineConfig | None = None) -> None:
        self._options = options
        self.loads: Sequence[int] = CUDA_LOADS if torch.cuda.is_available() else LOADS
        if options.quick:
            self.loads = (1, 4)
        num_contexts = self.loads[-1] * MAX_LANES
        engine = build_engine(_roomy(config or configured(), num_contexts))
        self._lanes = list(_lanes(engine))

    def measure(self, temperature: float, at_once: int) -> Measured:
        """One load."""
        num_rounds = ROUNDS * self._options.num_rounds * (2 if at_once <= 8 else 1)
        if self._options.quick:
            num_rounds = 1
        rules = RaceRules(
            num_rounds, _round_tokens(at_once) // _piece_tokens(at_once), (PLANNER, AR, AR_AGAIN)
        )
        cases: dict[str, Piece] = {
            lane.name: partial(self._piece, lane, temperature, at_once) for lane in self._lanes
        }
        first = self._warm_up(cases, at_once)
        samples = race(cases, rules)
        for lane in self._lanes:
            lane.close()
        return Measured(samples, first)

    def _warm_up(self, cases: Mapping[str, Piece], at_once: int) -> float:
        num_tokens = 64 if self._options.quick else max(WARM_TOKENS, 64 * at_once)
        pieces = range(10**6, 10**6 + num_tokens // _piece_tokens(at_once))
        pairs = [(cases[AR](number), cases[PLANNER](number)) for number in pieces]
        theirs, ours = zip(*pairs, strict=True)
        return rate(ours) / rate(theirs)

    def _piece(
        self, lane: Lane, temperature: float, at_once: int, number: int
    ) -> Mapping[str, float]:
        num_tokens = _piece_tokens(at_once)
        text, begun = divmod(number, TEXT_TOKENS * at_once // num_tokens)
        if number < 0 or not begun:
            seed = self._options.seed + 1000 * (text + 1)
            asked = prompts(replace(self._options, seed=seed), at_once)
            lane.open(asked, PROMPT_TOKENS, temperature)
        return lane.advance(num_tokens)


def _piece_tokens(at_once: int) -> int:
    return max(32, 8 * at_once)


def _round_tokens(at_once: int) -> int:
    return max(512, 32 * at_once)


def best_of(samples: Mapping[str, list[Sample]]) -> str:
    """The fastest of ar and the fixed lengths, among those that were measured to the end."""
    others = {k: own for k, own in samples.items() if k not in (PLANNER, AR_AGAIN)}
    longest = max(map(len, others.values()))
    return max(
        (name for name, own in others.items() if len(own) == longest),
        key=lambda name: rate(others[name]),
    )


def _roomy(config: EngineConfig, num_contexts: int) -> EngineConfig:
    """The verifier and what drafts for it, with room for many short contexts.

    With the prefix cache: all lanes read the same prompts, outside of the time.
    """
    config = replace(
        resolve(config),
        max_model_len=CONTEXT,
        max_batch_size=num_contexts,
        kv_memory_bytes=16 << 30,
        prefix_cache=True,
        entropy=None,
    )
    return config if config.drafter_path is None else replace(config, diffusion_path=None)


def _lanes(engine: DFastLLMEngine) -> Iterator[Lane]:
    _add_planned_deer(engine)
    yield Lane(AR, engine, "ar", NO_OPTIONS)
    for length in range(1, engine._runner.block_size):
        options = GenerationOptions(draft_length=length)
        yield Lane(f"fixed {length}", engine, "deer", options)
    yield Lane(PLANNER, engine, PLANNED, NO_OPTIONS)
    yield Lane(AR_AGAIN, engine, "ar", NO_OPTIONS)


def _add_planned_deer(engine: DFastLLMEngine) -> None:
    """A second `deer`, whose planner learns from its own drafts and nobody else's."""
    strategies = engine.batching.batcher.strategies
    assert isinstance(strategies, dict)
    first = strategies["deer"]
    strategies[PLANNED] = type(first).make(first.context)
    engine.modes = (*engine.modes, PLANNED)


def _columns(names: Sequence[str]) -> list[str]:
    shown_names = [name for name in names if name != AR_AGAIN]
    return [*shown_names, "best", "x best", "90 %", "median round", "first", "ar again"]


def _cells(found: Measured, best: str) -> Iterator[Cell]:
    samples = found.samples
    num_rounds = len(samples[PLANNER])
    for name, own in samples.items():
        if name != AR_AGAIN:
            yield rate(own) if len(own) == num_rounds else f"{shown(rate(own))}*"
    rounds = list(zip(samples[PLANNER], samples[best], strict=True))
    low, high = spread(rounds, _times)
    yield from (best, f"{_times(rounds):.3f}", f"{low:.3f} to {high:.3f}")
    yield f"{ratio(samples[PLANNER], samples[best], 'tokens_s'):.3f}"
    yield f"{found.first:.3f}"
    yield f"{_times(list(zip(samples[AR_AGAIN], samples[AR], strict=True))):.3f}"


def _times(rounds: Sequence[tuple[Sample, Sample]]) -> float:
    """How many times the second one's rate the first one has, over these rounds together."""
    ours, theirs = zip(*rounds, strict=True)
    return rate(ours) / rate(theirs)
