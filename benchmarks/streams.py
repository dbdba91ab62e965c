"""Table `streams`: tokens that come at a steady pace, from the worker to clients over SSE."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks.model_free import ServerPath, whole_path
from benchmarks.options import Options
from benchmarks.redis_watch import counters
from benchmarks.results import Cell, Chart, Table
from benchmarks.rounds import Sample, interleave, middle, percentile

LOADS = (1, 64, 512)
TOKENS_A_SECOND = 20
OPENING_S = 1.0
PARTS = ("api", "worker", "valkey", "client")
_NOTES = (
    "A whole server (embedded Valkey, one API process, one worker process) around an engine that "
    f"only keeps time: every 1/{TOKENS_A_SECOND} s a step, in which each stream gets one token, "
    "all of them at the same moment. Streams begin one after another within "
    f"{OPENING_S:g} s, and all tokens count, those of that second too.",
    "`token`: from the end of the step to the client that has read the event. `opened`: from the "
    "request to the status line, which waits for the worker. `first`: to the first token; the "
    "engine's step, up to 50 ms twice, is in it.",
    "`CPU`: seconds a part uses for 1,000 tokens, its share of starting and ending the streams "
    "included; the client is a process of its own.",
)


def run(options: Options) -> Table:
    loads = LOADS[:2] if options.quick else LOADS
    num_tokens = (2 if options.quick else 4) * TOKENS_A_SECOND
    flags = ("--step-s", str(1 / TOKENS_A_SECOND), "--max-batch-size", str(max(LOADS)))
    with whole_path("benchmarks.paced_worker", *flags) as path:
        cases = {_name(load): lambda number, n=load: sample(path, n, num_tokens) for load in loads}
        samples = interleave(cases, options.num_rounds)
    rows: list[list[Cell]] = [[name, *_figures(own)] for name, own in samples.items()]
    bars = {
        name: {f"p{share}": middle(own, f"way_ms_p{share}") for share in (50, 95, 99)}
        for name, own in samples.items()
    }
    return Table(
        "streams",
        f"Streams of {TOKENS_A_SECOND} tokens/s through one API process",
        _COLUMNS,
        rows,
        _NOTES,
        samples,
        Chart("ms from step to client", bars),
    )


_COLUMNS = (
    "load", "tokens/s", "token ms p50", "p95", "p99", "max", "opened ms p50", "p99",
    "first ms p50", "p99", *(f"{part} CPU s/1k" for part in PARTS), "reads/token", "lost",
)  # fmt: skip


def _name(num_streams: int) -> str:
    return "1 stream" if num_streams == 1 else f"{num_streams} streams"


def _figures(own: list[Sample]) -> list[float]:
    ways = [f"way_ms_{which}" for which in ("p50", "p95", "p99", "max")]
    openings = [f"{kind}_ms_{which}" for kind in ("opened", "first") for which in ("p50", "p99")]
    costs = [f"{part}_cpu_s_1k" for part in PARTS]
    kinds = ["tokens_s", *ways, *openings, *costs, "reads_token"]
    # Of lost tokens not the middle: one that is lost in any round is one too many.
    return [*(middle(own, kind) for kind in kinds), sum(sample["num_lost"] for sample in own)]


def sample(path: ServerPath, num_streams: int, num_tokens: int) -> Sample:
    """Read that many streams to their end; times in milliseconds, CPU in seconds a 1,000 tokens."""
    cpu_before, before = path.cpu_s(), counters(path.redis)
    report = _read_streams(path.port, num_streams, num_tokens)
    cpu_after, after = path.cpu_s(), counters(path.redis)
    cpu_s = {part: cpu_after[part] - cpu_before[part] for part in cpu_after}
    cpu_s["client"] = report["cpu_s"]
    total, ways = num_streams * num_tokens, report["way_ms"]
    return {
        "num_tokens": total,
        "num_lost": total - len(ways),
        "num_complete": report["num_complete"],
        "seconds": report["seconds"],
        "tokens_s": len(ways) / report["seconds"],
        **_spread("way_ms", ways),
        **_spread("opened_ms", report["opened_ms"]),
        **_spread("first_ms", report["first_ms"]),
        **{f"{part}_cpu_s_1k": cpu_s[part] / total * 1e3 for part in PARTS},
        **{f"{kind}_token": (after[kind] - before[kind]) / total for kind in after},
    }


def _spread(kind: str, values: list[float]) -> dict[str, float]:
    shares = {f"{kind}_p{share}": percentile(values, share / 100) for share in (50, 95, 99)}
    return {**shares, f"{kind}_max": max(values, default=float("nan"))}


def _read_streams(port: int, num_streams: int, num_tokens: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.stream_client", "--port", str(port)]
    command += ["--streams", str(num_streams), "--tokens", str(num_tokens)]
    command += ["--opening-s", str(OPENING_S)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    report: dict[str, Any] = json.loads(done.stdout)
    return report
