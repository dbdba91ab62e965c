"""Table `modes`: every way of generating in this process, without HTTP and without the queue."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from benchmarks.configured import configured
from benchmarks.grid import measure_grid
from benchmarks.lanes import encoded
from benchmarks.options import Options
from benchmarks.prompts import Prompt, prompts_of_round, tokens_of_round
from benchmarks.results import Cell, Table
from benchmarks.rounds import Sample, middle, ratio
from engine.build import build_engine
from engine.decoding.verification import count_accepted_prefix
from engine.dfastllm_engine import DFastLLMEngine
from engine.request.options import NO_OPTIONS, Acceptance, GenerationOptions
from engine.request.outputs import SequenceSummary, StepOutput
from engine.request.sampling_params import SamplingParams
from engine.request.sequence import Sequence

COLUMNS = (
    "mode", "T", "at once", "tokens/s", "x ar", "tokens / CPU s", "verify fwd / token",
    "draft fwd / token", "denoise fwd / token", "own fwd / token", "committed", "accepted",
    "same as ar", "agrees for",
)  # fmt: skip

AT_ONCE = (1, 8)
CASES: dict[str, tuple[str, GenerationOptions]] = {
    "ar": ("ar", NO_OPTIONS),
    "deer": ("deer", NO_OPTIONS),
    "deer, p/q": ("deer", GenerationOptions(acceptance=Acceptance.REJECTION)),
    "spec_diff": ("spec_diff", NO_OPTIONS),
    "spec_diff, 7 in 2 steps": (
        "spec_diff",
        GenerationOptions(draft_length=7, denoising_steps=2),
    ),
    "semi_ar": ("semi_ar", NO_OPTIONS),
    "semi_ar, from 0.6": ("semi_ar", GenerationOptions(confidence_threshold=0.6)),
    "diffusion": ("diffusion", NO_OPTIONS),
    "apd": ("apd", NO_OPTIONS),
    "apd, R = 0.9": ("apd", GenerationOptions(apd_mix_weight=0.9)),
}
"""Modes, and what some of them become with another setting."""


@dataclass
class Run:
    """What one measurement has seen; a place is a sequence in a step."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    num_places: int = 0  # decode steps alone, the first token comes from the prompt's
    tokens: dict[str, list[int]] = field(default_factory=dict)
    summaries: list[SequenceSummary] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.tokens.values()))

    def take(self, output: StepOutput) -> None:
        known = self.tokens.setdefault(output.sequence_id, [])
        self.num_places += bool(known)
        known.extend(output.token_ids)
        if output.summary is not None:
            self.summaries.append(output.summary)


class ModesBench:
    """One engine, measured in all its modes over the same prompts and seeds."""

    def __init__(self, options: Options) -> None:
        self._engine = build_engine(configured())
        self._options = options
        self._references: dict[tuple[float, int, int], dict[str, list[int]]] = {}

    @property
    def cases(self) -> list[str]:
        return [name for name, (mode, _) in CASES.items() if mode in self._engine.modes]

    def measure(self, case: str, temperature: float, at_once: int, number: int) -> Sample:
        """Run a closed loop: whenever a sequence ends, the next prompt takes its place."""
        asked = prompts_of_round(self._options, at_once, number)
        num_tokens = tokens_of_round(self._options, number)
        mode, knobs = CASES[case]
        waiting = deque(sequences(self._engine, asked, num_tokens, temperature, mode, knobs))
        self._engine.reset_stats()
        run = drive(self._engine, waiting, at_once)
        figures = _figures(run, self._engine.metrics())
        return {**figures, **self._compare(run, case, (temperature, at_once, number))}

    def _compare(self, run: Run, case: str, key: tuple[float, int, int]) -> dict[str, float]:
        """Against what ar gave in this round: sequences equal to it, and tokens until they differ.

        `agrees` is the mean share of a sequence before its first difference.
        """
        if case == "ar":
            self._references[key] = run.tokens
        reference = self._references[key]
        shares = [
            count_accepted_prefix(run.tokens[name], tokens) / len(tokens)
            for name, tokens in reference.items()
        ]
        same = sum(share == 1.0 for share in shares) / len(shares)
        return {"same": same, "agrees": sum(shares) / len(shares)}


def run(options: Options) -> Table:
    bench = ModesBench(options)
    grid = measure_grid(bench.cases, AT_ONCE, options.num_rounds, bench.measure, _row)
    title = "Every way of generating, one process"
    return Table("modes", title, COLUMNS, grid.rows, _NOTES, grid.samples, grid.chart)


_NOTES = (
    "Medians over interleaved rounds; `x ar` is the median of each round's own ratio. 128 new "
    "tokens a sequence, end of text ignored, prompts read within the time, prefix cache off.",
    "Forwards a token are those of the whole batch over all its tokens; `own fwd / token` counts "
    "for each sequence the forwards of any model that had rows of it (nfe), its prompt's included.",
    "`committed`: tokens that a sequence commits in a step that ends in the verifier, after its "
    "first; where there is no verifier, tokens a forward. `accepted`: share of the judged draft "
    "tokens that stood.",
    "`same as ar`: share of sequences equal to those of ar, token for token; `agrees for`: mean "
    "share of a sequence before its first difference. `deer` and `spec_diff` promise 100 % but for "
    "ties in floating point; `p/q` promises the distribution; the others are lossy or the "
    "diffusion model's own.",
)


def sequences(
    engine: DFastLLMEngine,
    asked: Iterable[Prompt],
    num_tokens: int,
    temperature: float,
    mode: str,
    knobs: GenerationOptions,
) -> Iterator[Sequence]:
    """One for each prompt, its number being its seed; all write `num_tokens`."""
    for index, prompt in enumerate(asked):
        params = SamplingParams(
            seed=index, temperature=temperature, max_tokens=num_tokens, ignore_eos=True
        )
        token_ids = encoded(engine, prompt, num_tokens)
        yield engine.make_sequence(str(index), token_ids, params, mode=mode, options=knobs)


def drive(engine: DFastLLMEngine, waiting: deque[Sequence], at_once: int) -> Run:
    """Run to the end, `at_once` sequences at a time."""
    result = Run()
    num_running = 0
    started, cpu_started = time.perf_counter(), time.process_time()
    while waiting or num_running:
        while waiting and num_running < at_once:
            engine.add(waiting.popleft())
            num_running += 1
        for output in engine.step():
            result.take(output)
            num_running -= output.finish_reason is not None
    result.seconds = time.perf_counter() - started
    result.cpu_seconds = time.process_time() - cpu_started
    return result


def _figures(run: Run, metrics: dict[str, float]) -> dict[str, float]:
    histograms = [summary.acceptance_histogram for summary in run.summaries]
    num_accepted = sum(length * n for h in histograms for length, n in enumerate(h))
    num_drafted = sum(summary.num_draft_tokens for summary in run.summaries)
    own_forwards = sum(summary.num_forwards for summary in run.summaries)
    if metrics["num_verify_forwards"]:
        committed = (run.num_tokens - len(run.tokens)) / max(1, run.num_places)
    else:
        committed = run.num_tokens / own_forwards
    return {
        "tokens_s": run.num_tokens / run.seconds,
        "tokens_cpu_s": run.num_tokens / run.cpu_seconds,
        "verify_forwards": metrics["num_verify_forwards"],
        "draft_forwards": metrics["num_draft_forwards"],
        "denoise_forwards": metrics["num_denoise_forwards"],
        "verify_per_token": metrics["num_verify_forwards"] / run.num_tokens,
        "draft_per_token": metrics["num_draft_forwards"] / run.num_tokens,
        "denoise_per_token": metrics["num_denoise_forwards"] / run.num_tokens,
        "own_per_token": own_forwards / run.num_tokens,
        "committed": committed,
        "acceptance": num_accepted / num_drafted if num_drafted else float("nan"),
    }


def _row(
    name: str, temperature: float, at_once: int, samples: Mapping[str, list[Sample]]
) -> list[Cell]:
    own = samples[name]
    return [
        name,
        f"{temperature:g}",
        at_once,
        middle(own, "tokens_s"),
        ratio(own, samples["ar"], "tokens_s"),
        middle(own, "tokens_cpu_s"),
        middle(own, "verify_per_token"),
        middle(own, "draft_per_token"),
        middle(own, "denoise_per_token"),
        middle(own, "own_per_token"),
        middle(own, "committed"),
        _percent(middle(own, "acceptance")),
        _percent(middle(own, "same")),
        _percent(middle(own, "agrees")),
    ]


def _percent(share: float) -> str:
    return "-" if share != share else f"{share:.1%}"
