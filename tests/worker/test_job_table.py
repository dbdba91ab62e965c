"""The table of jobs: which are late, and when to look for them again."""

from __future__ import annotations

import time

from tests.fakes import FakeEngine
from tests.worker_bench import QUEUE, make_job
from worker.job_runner import JobRunner
from worker.job_store import Claim
from worker.job_table import JobTable
from worker.running_job import RunningJob


def _add(table: JobTable, name: str, left_s: float) -> RunningJob:
    deadline = time.monotonic() + left_s
    claim = Claim(make_job(name), "execution", QUEUE, 1, [], deadline)
    running = RunningJob(claim, FakeEngine())
    table.add(running)
    return running


def test_only_jobs_past_their_deadline_are_late_and_each_until_it_ends() -> None:
    table = JobTable()
    late = _add(table, "late", -5)
    _add(table, "in-time", 3600)
    _add(table, "patient", float("inf"))
    assert table.late_jobs() == [late]


def test_the_next_deadline_is_the_soonest_and_goes_on_to_the_one_after() -> None:
    table = JobTable()
    assert table.next_deadline == float("inf")
    later = _add(table, "later", 3600)
    late = _add(table, "late", -5)
    assert table.next_deadline == late.deadline
    for job in table.late_jobs():
        table.end(job)
    assert table.next_deadline == later.deadline
    assert table.late_jobs() == []


def test_a_job_that_has_ended_is_not_late() -> None:
    table = JobTable()
    job = _add(table, "done", -5)
    table.end(job)
    assert table.late_jobs() == []
    assert table.next_deadline == float("inf")


def test_a_job_that_only_the_queue_has_given_a_time_is_late_like_others() -> None:
    runner = JobRunner(FakeEngine(), lambda _: None)
    job = make_job("late", timeout_s=None)
    runner.admit(Claim(job, "execution", QUEUE, 1, [], deadline=time.monotonic() - 1))
    runner.stop_late_jobs()
    record = runner.publisher.record_to_send()
    assert record is not None
    assert [(one.job_id, one.status) for one in record.endings] == [("late", "failed")]
