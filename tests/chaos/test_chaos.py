"""The chaos run, small: each kind of fault once, within seconds (`make chaos` is the long one)."""

from __future__ import annotations

from tests.chaos.__main__ import words_of
from tests.chaos.run import Plan, run


def test_jobs_under_fire_lose_double_and_leak_nothing() -> None:
    report = run(Plan(seed=54, num_jobs=60, num_faults=12, length_s=6.0))
    assert len(report.kinds) == 12
    assert report.num_poison and report.statuses["finished"] > 15 and report.num_audits > 5
    assert not report.wrong, words_of(report)
