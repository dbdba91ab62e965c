"""Table `scale_out`: workers whose engine takes no time on one Redis, and how much it can carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks.fleet import Load, measure
from benchmarks.options import Options
from benchmarks.results import Cell, Chart, Table
from benchmarks.rounds import Case, Sample, interleave, middle, ratio
from worker.cpu_threads import available_cores

NUMBERS = (1, 2, 3, 4)
COLUMNS = (
    "workers", "jobs/s", "tokens/s", "efficiency", "reads/job",
    "workers' CPU us/job", "Valkey CPU us/job", "Valkey busy",
)  # fmt: skip
_LOAD = Load(step_s=0.0, batch=64, num_tokens=1, jobs_a_worker=4000)
_NOTES = (
    "Worker processes around an engine without a model, on one Valkey whose queue is filled "
    "before they are let go, all at once; the time ends with the last job, by Redis' clock. Each "
    "worker brings as many jobs along as the first, so that even work takes even time.",
    "`efficiency`: jobs/s by workers times the first worker's, the median of the rounds' own.",
    "`reads`: how often Redis read from a socket, which is once a round trip.",
    "`CPU`: of all workers together, their registration included; of Valkey's one main thread, "
    "which `busy` gives as a share of the time. These carry over to other machines; jobs/s do "
    "not, where workers and Valkey share the cores.",
)


def run(options: Options) -> Table:
    samples = sample_fleets(_LOAD, options)
    most = samples[_workers(NUMBERS[-1])]
    enqueue, work = _per_job(most, "enqueue_valkey_cpu_s"), _per_job(most, "valkey_cpu_s")
    notes = (
        "Jobs of one token, 64 at once in a worker, in steps that take no time.",
        f"Valkey's own limit, by its CPU time with {NUMBERS[-1]} workers: {enqueue * 1e6:.0f} us "
        f"to enqueue a job and {work * 1e6:.0f} us to claim and end it are at most "
        f"{1 / (enqueue + work):,.0f} jobs/s of its one thread.",
    )
    return fleet_table("scale_out", "Workers without a pace on one Redis", samples, notes)


def sample_fleets(load: Load, options: Options) -> dict[str, list[Sample]]:
    """Measure 1 to 4 workers in turn, by `1 worker`, `2 workers` and so on."""
    if options.quick:
        load = replace(load, jobs_a_worker=2 * load.batch, num_tokens=min(load.num_tokens, 8))
    return interleave({_workers(n): _case(load, n) for n in NUMBERS}, options.num_rounds)


def fleet_table(
    name: str, title: str, samples: Mapping[str, Sequence[Sample]], notes: Sequence[str]
) -> Table:
    first = samples[_workers(1)]
    rows = [_row(number, samples[_workers(number)], first) for number in NUMBERS]
    times = {label: ratio(own, first, "jobs_s") for label, own in samples.items()}
    bars = {label: {"times one worker's jobs/s": value} for label, value in times.items()}
    cores = f"{available_cores()} cores for workers, Valkey and this program."
    chart = Chart("times one worker's jobs/s", bars)
    return Table(name, title, COLUMNS, rows, (*_NOTES, *notes, cores), dict(samples), chart)


def _case(load: Load, num_workers: int) -> Case:
    def sample(number: int) -> Sample:
        # To warm up means here to have the modules in the page cache: once is enough.
        if number >= 0:
            return measure(load, num_workers)
        return measure(replace(load, jobs_a_worker=1), 1) if num_workers == 1 else {}

    return sample


def _row(num_workers: int, own: Sequence[Sample], first: Sequence[Sample]) -> list[Cell]:
    return [
        str(num_workers),
        middle(own, "jobs_s"),
        middle(own, "jobs_s") * own[0]["num_tokens"] / own[0]["num_jobs"],
        ratio(own, first, "jobs_s") / num_workers,
        _per_job(own, "reads"),
        _per_job(own, "worker_cpu_s") * 1e6,
        _per_job(own, "valkey_cpu_s") * 1e6,
        middle(own, "valkey_busy"),
    ]


def _per_job(own: Sequence[Sample], kind: str) -> float:
    return middle(own, kind) / own[0]["num_jobs"]


def _workers(number: int) -> str:
    return "1 worker" if number == 1 else f"{number} workers"
