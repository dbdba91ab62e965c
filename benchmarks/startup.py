"""Table `startup`: how long `dfastllm serve` takes until it answers."""

from __future__ import annotations

import time

from benchmarks.load import model_name, run_streams
from benchmarks.options import Options
from benchmarks.results import Chart, Table
from benchmarks.rounds import Sample, interleave, middle
from benchmarks.server import served

_NOTES = (
    "Seconds since the start of the process, in a fresh data folder: until `/ready` answers 200, "
    "and until the first text of the first request after that has arrived.",
)


def run(options: Options) -> Table:
    samples = interleave({"serve": lambda number: _sample()}, options.num_rounds)
    own = samples["serve"]
    figures = {"ready": middle(own, "ready_s"), "first token": middle(own, "first_token_s")}
    return Table(
        "startup",
        "From `dfastllm serve` to the first token",
        ("until", "seconds, median", "slowest"),
        [
            [name, figure, max(sample[f"{name.replace(' ', '_')}_s"] for sample in own)]
            for name, figure in figures.items()
        ],
        _NOTES,
        samples,
        Chart("seconds", {name: {"serve": figure} for name, figure in figures.items()}),
    )


def _sample() -> Sample:
    with served() as server:
        asked_at = time.perf_counter()
        body = {"model": model_name(server.port), "prompt": "Once upon a time", "max_tokens": 1}
        run_streams(server.port, [("/v1/completions", body)], at_once=1)
        answer_s = time.perf_counter() - asked_at
        return {"ready_s": server.ready_s, "first_token_s": server.ready_s + answer_s}
