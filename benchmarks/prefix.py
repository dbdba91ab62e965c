"""Table `prefix`: what the prefix cache saves before the first token, by the prefix's length."""

from __future__ import annotations

from random import Random

from benchmarks.load import Request, model_name, run_streams
from benchmarks.options import Options
from benchmarks.results import Cell, Chart, Table
from benchmarks.rounds import Sample, interleave, middle, percentile, ratio
from benchmarks.server import served

LENGTHS = (128, 256, 512, 1024)
TAIL_TOKENS = 16
# Plain tokens in any vocabulary worth serving: above the bytes and below the end.
_TOKEN_IDS = range(300, 2000)
_NOTES = (
    f"Prompts of the prefix and {TAIL_TOKENS} tokens more, random ids, one request at a time, "
    "through `dfastllm serve`. cold: a prefix nobody has sent. warm: the same, another tail.",
    "`x sooner`: cold by warm, the median of the rounds' own ratios. `cached`: tokens of the warm "
    "prompt that the answer's `usage` reports as read from the cache.",
)


def run(options: Options) -> Table:
    with served() as server:
        return _measure(options, server.port)


def _measure(options: Options, port: int) -> Table:
    model = model_name(port)
    cases = {
        f"{length} {name}": lambda number, n=length, t=tail: _sample(
            options, port, model, number, n, t
        )
        for length in LENGTHS
        for tail, name in enumerate(("cold", "warm"))
    }
    samples = interleave(cases, options.num_rounds)
    bars = {
        f"{length} tokens": {
            name: middle(samples[f"{length} {name}"], "first_ms_p50") for name in ("cold", "warm")
        }
        for length in LENGTHS
    }
    return Table(
        "prefix",
        "Time to first token by the length of the prefix",
        ("prefix", "cold ms p50", "p95", "warm ms p50", "p95", "x sooner", "cached"),
        [_row(length, samples) for length in LENGTHS],
        _NOTES,
        samples,
        Chart("ms to the first token", bars),
    )


def _row(length: int, samples: dict[str, list[Sample]]) -> list[Cell]:
    cold, warm = (samples[f"{length} {name}"] for name in ("cold", "warm"))
    return [
        length,
        *(middle(own, f"first_ms_{p}") for own in (cold, warm) for p in ("p50", "p95")),
        ratio(cold, warm, "first_ms_p50"),
        middle(warm, "cached"),
    ]


def _sample(options: Options, port: int, model: str, number: int, length: int, tail: int) -> Sample:
    count = 2 if options.quick else 8
    names = [f"{number}:{length}:{index}" for index in range(count)]
    requests = [_request(options, model, name, length, tail) for name in names]
    streams = run_streams(port, requests, at_once=1).streams
    first = [stream.first_s * 1e3 for stream in streams]
    return {
        "first_ms_p50": percentile(first, 0.5),
        "first_ms_p95": percentile(first, 0.95),
        "cached": percentile([stream.num_cached_tokens for stream in streams], 0.5),
    }


def _request(options: Options, model: str, name: str, length: int, tail: int) -> Request:
    prefix = Random(f"{options.seed}:{name}").choices(_TOKEN_IDS, k=length)
    own = Random(f"{options.seed}:{name}:{tail}").choices(_TOKEN_IDS, k=TAIL_TOKENS)
    body = {"model": model, "prompt": prefix + own, "max_tokens": 2, "ignore_eos": True}
    return "/v1/completions", body
