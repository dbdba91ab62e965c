"""Deltas in any order, doubled or lost: the reader sees each once, in its place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.errors import ApiError, RequestTimeoutError
from api.generation import DeltaSequencer, Generation
from worker.wire.messages import (
    Accepted,
    Chat,
    Delta,
    Failed,
    Finished,
    GenerateJob,
    Rejected,
    Sampling,
    Usage,
)

pytestmark = pytest.mark.anyio

JOB = GenerateJob(
    job_id="j",
    api_id="a",
    model="m",
    tenant="t",
    created=0,
    input=Chat([]),
    sampling=Sampling(seed=1),
)
USAGE = Usage(1, 2, 0)


def _delta(index: int) -> Delta:
    return Delta("j", index, 0, [index], f"<{index}>")


@given(st.permutations(range(8)), st.lists(st.integers(0, 7)))
def test_any_order_with_doubles_comes_out_in_order(order: list[int], doubles: list[int]) -> None:
    sequencer = DeltaSequencer()
    out = [delta for index in order + doubles for delta in sequencer.push(_delta(index))]
    assert [delta.index for delta in out] == list(range(8))
    assert not sequencer.has_gap


async def test_an_early_end_waits_for_the_delta_that_is_missing() -> None:
    generation = Generation(JOB, lambda _: None)
    generation.put(_delta(0))
    finished = Finished("j", 2, USAGE)
    generation.put(finished)
    assert generation.has_gap
    assert not generation.has_ended
    assert await generation.take() == [_delta(0)]
    generation.put(_delta(1))
    assert await generation.take() == [_delta(1), finished]
    assert generation.has_ended
    assert not generation.has_gap


async def test_what_came_before_a_failure_is_read_first() -> None:
    generation = Generation(JOB, lambda _: None)
    generation.put(_delta(0))
    generation.put(Failed("j", 500, "broken", "engine_error"))
    assert await generation.take() == [_delta(0)]
    with pytest.raises(ApiError, match="broken"):
        await generation.take()


async def test_a_delta_is_as_good_as_the_acceptance_that_was_lost() -> None:
    generation = Generation(JOB, lambda _: None)
    generation.put(_delta(0))
    assert await generation.wait_accepted(0)


async def test_acceptance_is_waited_for_no_longer_than_asked() -> None:
    generation = Generation(JOB, lambda _: None)
    assert not await generation.wait_accepted(0.01)
    generation.put(Accepted("j", 1))
    assert await generation.wait_accepted(0.01)


async def test_a_refusal_is_raised_by_whoever_waits() -> None:
    generation = Generation(JOB, lambda _: None)
    generation.put(Rejected("j", 400, "no", "prompt"))
    with pytest.raises(ApiError, match="no"):
        await generation.wait_accepted()


async def test_silence_is_an_empty_answer() -> None:
    assert await Generation(JOB, lambda _: None).take(0.01) == []


async def test_only_a_job_that_may_still_run_needs_a_cancel() -> None:
    closed: list[Generation] = []
    running, given_up, finished = (Generation(JOB, closed.append) for _ in range(3))
    given_up.give_up(RequestTimeoutError("late"))
    finished.put(Finished("j", 0, USAGE))
    assert (running.may_still_run, given_up.may_still_run) == (True, True)
    assert not finished.may_still_run
    running.close()
    running.close()
    assert closed == [running]


async def test_a_worker_cannot_make_us_send_a_status_that_is_no_error() -> None:
    generation = Generation(JOB, lambda _: None)
    generation.put(Failed("j", 200, "odd"))
    with pytest.raises(ApiError) as caught:
        await generation.take()
    assert caught.value.status == 500


async def test_an_answer_made_anew_in_other_pieces_is_not_put_together_from_both() -> None:
    closed: list[Generation] = []
    generation = Generation(JOB, closed.append)
    for index in range(3):
        generation.put(_delta(index))
    assert len(await generation.take()) == 3
    generation.put(_delta(1))  # the same piece: a rerun that goes the same way
    generation.put(Delta("j", 2, 1, [2], "of another choice"))
    generation.put(_delta(3))
    with pytest.raises(ApiError, match="has lost a part of this answer") as error:
        await generation.take()
    assert (error.value.status, error.value.code) == (500, "output_lost")
    generation.close()
    assert closed == [generation] and generation.may_still_run, "nobody needs the rest"
