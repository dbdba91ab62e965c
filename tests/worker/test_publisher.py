"""What is said goes out once, and again only where nobody knows whether it arrived."""

from __future__ import annotations

from worker.held_job import Ending
from worker.publisher import Publisher
from worker.wire.messages import Accepted, Delta, Finished, Usage


def delta(job_id: str, index: int, text: str = "t") -> Delta:
    return Delta(job_id, index, 0, [1], text)


def ending(job_id: str) -> Ending:
    return Ending(job_id, "finished", Finished(job_id, 1, Usage(1, 1, 0)))


def test_all_jobs_of_a_step_go_into_one_record() -> None:
    publisher = Publisher()
    publisher.answer(Accepted("a", 3))
    publisher.say([delta("a", 0), delta("b", 4)])
    publisher.end(ending("b"))
    record = publisher.record_to_send()
    assert record is not None
    assert [len(part) for part in (record.answers, record.deltas, record.endings)] == [1, 2, 1]
    assert publisher.arrived() == [ending("b")]
    assert publisher.record_to_send() is None
    assert publisher.is_empty


def test_a_record_that_may_have_arrived_is_sent_again_unchanged() -> None:
    publisher = Publisher()
    publisher.say([delta("a", 0)])
    first = publisher.record_to_send()
    publisher.say([delta("a", 1)])
    again = publisher.record_to_send()
    assert again is first
    assert again is not None and [one.index for one in again.deltas] == [0]
    publisher.arrived()
    following = publisher.record_to_send()
    assert following is not None and [one.index for one in following.deltas] == [1]


def test_lost_jobs_are_forgotten_and_others_are_not() -> None:
    publisher = Publisher()
    publisher.say([delta("lost", 0), delta("kept", 0)])
    publisher.end(ending("lost"))
    publisher.forget({"lost"})
    record = publisher.record_to_send()
    assert record is not None
    assert [one.job_id for one in record.deltas] == ["kept"]
    assert record.endings == []


def test_the_weight_of_kept_output_grows_and_falls_to_nothing() -> None:
    publisher = Publisher()
    publisher.say([delta("a", 0, "x" * 1000)])
    publisher.record_to_send()
    publisher.say([delta("a", 1, "x" * 5000)])
    assert publisher.num_bytes > 6000
    publisher.arrived()
    assert 5000 < publisher.num_bytes < 6000
    publisher.record_to_send()
    publisher.arrived()
    assert publisher.num_bytes == 0
