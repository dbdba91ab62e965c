"""A fleet of workers empties one queue, and is timed from the word to go to the last ending."""

from __future__ import annotations

from benchmarks.fleet import Load, measure


def test_two_workers_share_a_queue_and_every_job_is_counted_once() -> None:
    figures = measure(Load(step_s=0.002, batch=4, num_tokens=8, jobs_a_worker=12), 2)
    assert (figures["num_jobs"], figures["num_tokens"]) == (24, 192)
    # Six rounds of four jobs of eight steps, were there one worker: two cannot take less than half.
    assert 3 * 8 * 0.002 <= figures["seconds"] < 60
    assert figures["jobs_s"] == 24 / figures["seconds"]
    assert figures["worker_cpu_s"] > 0
    assert 0 < figures["valkey_busy"] < 2
    assert figures["scripts"] >= 24 + 3  # an end for each job, and claims
