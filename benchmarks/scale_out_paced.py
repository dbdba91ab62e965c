"""Table `scale_out_paced`: workers that stream, each on an engine that sleeps 5 ms a step."""

from __future__ import annotations

from benchmarks.fleet import Load
from benchmarks.options import Options
from benchmarks.results import Table
from benchmarks.rounds import middle
from benchmarks.scale_out import fleet_table, sample_fleets

_LOAD = Load(step_s=0.005, batch=16, num_tokens=64, jobs_a_worker=80)


def run(options: Options) -> Table:
    samples = sample_fleets(_LOAD, options)
    most = list(samples.values())[-1]
    token_s = middle(most, "valkey_cpu_s") / most[0]["num_tokens"]
    notes = (
        f"Streamed jobs of {_LOAD.num_tokens} tokens, {_LOAD.batch} at once in a worker, a token "
        "each in a step that sleeps, as on a device of its own: "
        f"{_LOAD.batch / _LOAD.step_s:,.0f} tokens/s a worker are the most there can be.",
        f"Valkey's own limit, by its CPU time with {len(samples)} workers: {token_s * 1e6:.1f} us "
        "a streamed token, its job's claim and ending included, are at most "
        f"{1 / token_s:,.0f} tokens/s of its one thread.",
    )
    return fleet_table("scale_out_paced", "Workers of 5 ms a step on one Redis", samples, notes)
