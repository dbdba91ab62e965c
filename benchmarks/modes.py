"""Table `modes`: ar against deer in this process, without HTTP and without the queue."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from benchmarks.options import Options
from benchmarks.prompts import Prompt, prompts_of_round, tokens_of_round
from benchmarks.results import Cell, Chart, Table
from benchmarks.rounds import Sample, interleave, middle, ratio
from engine.build import build_engine
from engine.dfastllm_engine import DFastLLMEngine
from engine.request.outputs import SequenceSummary, StepOutput
from engine.request.sampling_params import SamplingParams
from engine.request.sequence import Sequence
from worker.engine_config import engine_config
from worker.settings import read_settings

COLUMNS = (
    "mode", "T", "at once", "tokens/s", "x ar", "tokens / CPU s", "verify fwd / token",
    "draft fwd / token", "tokens / verify", "accepted", "same as ar",
)  # fmt: skip


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
    """One engine, measured in both modes over the same prompts and seeds."""

    def __init__(self, options: Options) -> None:
        settings = read_settings({**os.environ, "VDIFF_REDIS_URL": "unix:///not-used"})
        # Without the prefix cache, or the second mode would find what the first has read.
        self._engine = build_engine(replace(engine_config(settings), prefix_cache=False))
        self._options = options
        self._references: dict[tuple[float, int, int], dict[str, list[int]]] = {}

    @property
    def modes(self) -> list[str]:
        return [mode for mode in ("ar", "deer") if mode in self._engine.modes]

    def measure(self, mode: str, temperature: float, at_once: int, number: int) -> Sample:
        """Run a closed loop: whenever a sequence ends, the next prompt takes its place."""
        asked = prompts_of_round(self._options, at_once, number)
        num_tokens = tokens_of_round(self._options, number)
        waiting = deque(self._sequences(asked, num_tokens, mode, temperature))
        self._engine.reset_stats()
        run = drive(self._engine, waiting, at_once)
        same = self._compare(run, mode, (temperature, at_once, number))
        return {**_figures(run, self._engine.metrics()), "same": same}

    def _sequences(
        self, asked: list[Prompt], num_tokens: int, mode: str, temperature: float
    ) -> Iterator[Sequence]:
        for index, prompt in enumerate(asked):
            token_ids = encoded(self._engine, prompt, num_tokens)
            params = SamplingParams(
                seed=index, temperature=temperature, max_tokens=num_tokens, ignore_eos=True
            )
            yield self._engine.make_sequence(str(index), token_ids, params, mode=mode)

    def _compare(self, run: Run, mode: str, key: tuple[float, int, int]) -> float:
        """The share of sequences that have, token for token, what ar gave in this round."""
        if mode == "ar":
            self._references[key] = run.tokens
        reference = self._references[key]
        return sum(run.tokens[name] == reference[name] for name in reference) / len(reference)


def run(options: Options) -> Table:
    bench = ModesBench(options)
    rows: list[list[Cell]] = []
    bars: dict[str, dict[str, float]] = {}
    kept: dict[str, object] = {}
    for temperature in (0.0, 1.0):
        for at_once in (1, 4) if options.quick else (1, 4, 16):
            cases = {
                mode: lambda number, m=mode, t=temperature, c=at_once: bench.measure(
                    m, t, c, number
                )
                for mode in bench.modes
            }
            samples = interleave(cases, options.num_rounds)
            for mode, own in samples.items():
                rows.append(_row(mode, temperature, at_once, own, samples["ar"]))
                group = bars.setdefault(f"{at_once} at once\nT = {temperature:g}", {})
                group[mode] = middle(own, "tokens_s")
                kept[f"{mode}, T={temperature:g}, {at_once} at once"] = own
    return Table(
        "modes",
        "Autoregressive against hybrid decoding, one process",
        COLUMNS,
        rows,
        _NOTES,
        kept,
        Chart("tokens / s", bars),
    )


_NOTES = (
    "Medians over interleaved rounds; `x ar` is the median of each round's own ratio. 128 new "
    "tokens a sequence, end of text ignored, prompts read within the time, prefix cache off.",
    "`tokens / verify`: tokens that a sequence commits in one verifier forward after its first. "
    "`accepted`: share of the drafted tokens that the verifier kept.",
    "`same as ar`: share of sequences equal to those of ar, token for token; below 100 % only "
    "where two tokens are so close that the batch's shape decides in floating point.",
)


def encoded(engine: DFastLLMEngine, prompt: Prompt, num_tokens: int) -> list[int]:
    """The prompt's tokens, the last of them where there is no room for all and `num_tokens`."""
    if prompt.messages:
        token_ids = engine.tokenizer.apply_chat_template(list(prompt.messages))
    else:
        token_ids = engine.tokenizer.encode(prompt.text)
    return token_ids[-(engine.max_model_len - num_tokens) :]


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
    decoded = run.num_tokens - len(run.tokens)
    return {
        "tokens_s": run.num_tokens / run.seconds,
        "tokens_cpu_s": run.num_tokens / run.cpu_seconds,
        "verify_forwards": metrics["num_verify_forwards"],
        "draft_forwards": metrics["num_draft_forwards"],
        "verify_per_token": metrics["num_verify_forwards"] / run.num_tokens,
        "draft_per_token": metrics["num_draft_forwards"] / run.num_tokens,
        "tokens_per_verify": decoded / max(1, run.num_places),
        "acceptance": num_accepted / num_drafted if num_drafted else float("nan"),
    }


def _row(
    mode: str, temperature: float, at_once: int, own: list[Sample], base: list[Sample]
) -> list[Cell]:
    return [
        mode,
        f"{temperature:g}",
        at_once,
        middle(own, "tokens_s"),
        ratio(own, base, "tokens_s"),
        middle(own, "tokens_cpu_s"),
        middle(own, "verify_per_token"),
        middle(own, "draft_per_token"),
        middle(own, "tokens_per_verify"),
        _percent(middle(own, "acceptance")),
        _percent(middle(own, "same")),
    ]


def _percent(share: float) -> str:
    return "-" if share != share else f"{share:.1%}"
