"""Table `prefix`: what the prefix cache saves before the first token."""

from __future__ import annotations

from random import Random

from benchmarks.load import Request, model_name, run_streams
from benchmarks.options import Options
from benchmarks.results import Cell, Chart, Table
from benchmarks.rounds import Sample, interleave, middle, percentile, ratio
from benchmarks.server import served

PREFIX_TOKENS = 512
TAIL_TOKENS = 16
# Plain tokens in any vocabulary worth serving: above the bytes and below the end.
_TOKEN_IDS = range(300, 2000)
_NOTES = (
    f"Prompts of {PREFIX_TOKENS} + {TAIL_TOKENS} random token ids, one request at a time, through "
    "`dfastllm serve`. cold: a prefix nobody has sent. warm: the same prefix, another tail.",
    "`cached`: tokens of the prompt that the answer's `usage` reports as read from the cache.",
)


def run(options: Options) -> Table:
    with served() as server:
        return _measure(options, server.port)


def _measure(options: Options, port: int) -> Table:
    model = model_name(port)
    cases = {
        name: lambda number, t=tail: _sample(options, port, model, number, t)
        for tail, name in enumerate(("cold", "warm"))
    }
    samples = interleave(cases, options.num_rounds)
    rows: list[list[Cell]] = [
        [
            name,
            middle(own, "first_ms_p50"),
            middle(own, "first_ms_p95"),
            ratio(own, samples["cold"], "first_ms_p50"),
            middle(own, "cached"),
        ]
        for name, own in samples.items()
    ]
    bars = {name: {"p50": middle(own, "first_ms_p50")} for name, own in samples.items()}
    return Table(
        "prefix",
        f"Time to first token behind a prefix of {PREFIX_TOKENS} tokens",
        ("prefix", "first token ms p50", "p95", "x cold", "cached"),
        rows,
        _NOTES,
        samples,
        Chart("ms to the first token", bars),
    )


def _sample(options: Options, port: int, model: str, number: int, tail: int) -> Sample:
    count = 2 if options.quick else 8
    requests = [_request(options, model, f"{number}:{index}", tail) for index in range(count)]
    streams = run_streams(port, requests, at_once=1).streams
    first = [stream.first_s * 1e3 for stream in streams]
    return {
        "first_ms_p50": percentile(first, 0.5),
        "first_ms_p95": percentile(first, 0.95),
        "cached": percentile([stream.num_cached_tokens for stream in streams], 0.5),
    }


def _request(options: Options, model: str, name: str, tail: int) -> Request:
    prefix = Random(f"{options.seed}:{name}").choices(_TOKEN_IDS, k=PREFIX_TOKENS)
    own = Random(f"{options.seed}:{name}:{tail}").choices(_TOKEN_IDS, k=TAIL_TOKENS)
    body = {"model": model, "prompt": prefix + own, "max_tokens": 2, "ignore_eos": True}
    return "/v1/completions", body
