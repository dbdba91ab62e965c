"""Table `serving`: ar against deer through `dfastllm serve`, as a client sees it."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.grid import measure_grid
from benchmarks.load import completion, model_name, run_streams
from benchmarks.options import Options
from benchmarks.prompts import prompts_of_round, tokens_of_round
from benchmarks.results import Cell, Table
from benchmarks.rounds import Sample, middle, ratio
from benchmarks.server import served

COLUMNS = (
    "mode", "T", "at once", "tokens/s", "x ar", "first token ms p50", "p95", "ms / token p50",
    "p95", "chunk gap ms p50", "p95", "complete",
)  # fmt: skip
_FIGURES = (
    "first_ms_p50", "first_ms_p95", "pace_ms_p50", "pace_ms_p95", "gap_ms_p50", "gap_ms_p95",
)  # fmt: skip
_NOTES = (
    "Medians over interleaved rounds of each round's figure. Client, API, queue and worker share "
    "the machine. 128 new tokens a stream, end of text ignored.",
    "`first token`: from sending the request to its first text. `ms / token`: a stream's time "
    "after its first chunk over its tokens after the first. `chunk gap`: between two chunks, "
    "of which deer's hold several tokens.",
    "`complete`: streams that ended with a finish reason, `[DONE]` and all their tokens.",
)


def run(options: Options) -> Table:
    with served() as server:
        return _measure(options, server.port)


def _measure(options: Options, port: int) -> Table:
    model = model_name(port)

    def measure(mode: str, temperature: float, at_once: int, number: int) -> Sample:
        return _sample(options, port, model, mode, temperature, at_once, number)

    loads = (1, 4) if options.quick else (1, 4, 16)
    grid = measure_grid(("ar", "deer"), loads, options.num_rounds, measure, _row)
    title = "Autoregressive against hybrid decoding over HTTP"
    return Table("serving", title, COLUMNS, grid.rows, _NOTES, grid.samples, grid.chart)


def _sample(
    options: Options,
    port: int,
    model: str,
    mode: str,
    temperature: float,
    at_once: int,
    number: int,
) -> Sample:
    num_tokens = tokens_of_round(options, number)
    asked = prompts_of_round(options, at_once, number)
    requests = [
        completion(
            prompt,
            model=model,
            mode=mode,
            temperature=temperature,
            seed=index,
            max_tokens=num_tokens,
            ignore_eos=True,
            # The second mode must not find the prompts that the first one has read.
            cache_salt=f"{mode} {number} {temperature} {at_once}",
        )
        for index, prompt in enumerate(asked)
    ]
    result = run_streams(port, requests, at_once)
    num_full = sum(stream.num_tokens == num_tokens for stream in result.streams)
    figures = result.figures()
    return {**figures, "num_complete": min(figures["num_complete"], num_full)}


def _row(
    mode: str, temperature: float, at_once: int, samples: Mapping[str, list[Sample]]
) -> list[Cell]:
    own = samples[mode]
    complete, total = (int(sum(s[key] for s in own)) for key in ("num_complete", "num_streams"))
    return [
        mode,
        f"{temperature:g}",
        at_once,
        middle(own, "tokens_s"),
        ratio(own, samples["ar"], "tokens_s"),
        *(middle(own, key) for key in _FIGURES),
        f"{complete}/{total}",
    ]
