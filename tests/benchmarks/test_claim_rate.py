"""The rate of one worker: all jobs, by Redis' own clock and counters."""

from __future__ import annotations

from benchmarks.claim_rate import measure


def test_a_filled_queue_is_emptied_and_timed_from_claim_to_ending() -> None:
    figures = measure(150, "a prompt")
    assert figures["num_jobs"] == 150
    assert 0 < figures["seconds"] < 60
    assert figures["jobs_s"] == 150 / figures["seconds"]
    # The worker has 64 places: it must claim three times at least, and far from once a job.
    assert 6 <= figures["scripts"] < 150
