"""A team of threads: meets at barriers, does with fewer while cores are taken, and ends."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest

pytest.importorskip("numba")

from engine.models.cpu.attendance import Attendance
from engine.models.cpu.kernel import kernel
from engine.models.cpu.team import Member, Team, begin, leave, meet, share
from tests.engine.kernel_entries import entry

_begin = entry(begin)
LARGE = 10**9  # multiply-adds: worth a helper


@kernel
def pass_on(member, values, late):
    """Every member adds to all values in turn what it has read from the one before."""
    begin(member)
    barrier = 1
    for turn in range(1, values.shape[0]):
        if turn % member.size == member.rank:
            for _ in range(late):  # long enough that the others go to sleep
                values[0] = values[0] * 1.0
            values[turn] = values[turn - 1] + 1.0
        barrier = meet(member, barrier)
    leave(member, barrier)


@kernel
def count_members(member, seen):
    begin(member)
    seen[member.rank] = member.size
    leave(member, 1)


@kernel
def share_out(member, taken):
    begin(member)
    first, end = share(taken.shape[0], member)
    taken[first:end] += 1
    leave(member, 1)


@kernel
def prepare(member, prepared, seen):
    if member.rank == 0:
        prepared[0] += 1
    begin(member)
    seen[member.rank] = prepared[0]
    leave(member, 1)


def test_a_helper_that_has_come_early_finds_what_the_calling_thread_has_prepared() -> None:
    prepared, seen, bells = np.zeros(1, np.int64), np.zeros(2, np.int64), np.zeros(64, np.int64)
    prepare(Member(0, 1, np.zeros(17, np.int64), bells), prepared, seen)  # compiles
    for turn in range(2, 30):
        counters = np.zeros(17, np.int64)
        members = [Member(rank, 2, counters, bells) for rank in (0, 1)]
        helper = threading.Thread(target=prepare, args=(members[1], prepared, seen))
        helper.start()
        time.sleep(0.002 * (turn % 3))  # after which it sleeps
        prepare(members[0], prepared, seen)
        helper.join(timeout=10)
        assert seen.tolist() == [turn, turn]


@pytest.mark.parametrize("late", [0, 1_000_000], ids=["spinning", "sleeping"])
def test_what_one_member_wrote_before_a_barrier_the_others_read_after_it(late: int) -> None:
    for size in (1, 2, 3):
        values = np.zeros(40 if late else 4000)
        Team(size).run(pass_on, values, late, num_products=LARGE)
        assert values.tolist() == list(range(len(values)))


def test_everything_is_in_exactly_one_members_share() -> None:
    for size, count in ((1, 5), (2, 5), (3, 2), (3, 100)):
        taken = np.zeros(count, np.int64)
        Team(size).run(share_out, taken, num_products=LARGE)
        assert taken.tolist() == [1] * count


def test_a_helper_is_woken_only_for_what_is_worth_it() -> None:
    team = Team(2)
    seen = np.zeros(2, np.int64)
    team.run(count_members, seen, num_products=1000)
    assert seen.tolist() == [1, 0]
    team.run(count_members, seen, num_products=LARGE)
    assert seen.tolist() == [2, 2]


def test_the_helpers_of_a_team_that_is_gone_end() -> None:
    before = set(threading.enumerate())
    team = Team(3)
    helpers = set(threading.enumerate()) - before
    assert len(helpers) == 2
    del team
    gc.collect()
    for helper in helpers:
        helper.join(timeout=10)
        assert not helper.is_alive()


def run_often(attendance: Attendance, share: float, now: float, times: int = 4) -> list[int]:
    """Runs of 1 ms from `now` on, in which the threads ran for a share of the time."""
    called = []
    for _ in range(times):
        size = attendance.num_called(now)
        called.append(size)
        now += 0.001
        attendance.note(size, 0.001, share * size * 0.001, now)
    return called


def test_a_team_that_has_its_cores_stays_whole() -> None:
    assert run_often(Attendance(4), 0.9, 0.0, 100) == [4] * 100


def test_threads_without_a_core_are_left_out_one_by_one_and_the_last_one_stays() -> None:
    attendance = Attendance(3)
    assert run_often(attendance, 0.5, 0.0, 4) == [3] * 4
    assert run_often(attendance, 0.5, 0.004, 4) == [2] * 4
    assert run_often(attendance, 0.5, 0.008, 30) == [1] * 30


def test_a_thread_that_was_left_out_is_tried_again_and_ever_more_rarely() -> None:
    attendance = Attendance(2)
    called = run_often(attendance, 0.5, 0.0, 2000)
    starts = [i for i in range(1, 2000) if called[i - 1 : i + 1] == [1, 2]]
    rests = np.diff([0, *starts])
    assert rests[0] == pytest.approx(4 + 8 * 4, abs=2)
    assert list(rests) == sorted(rests)
    assert rests[-1] == pytest.approx(4 + 128 * 4, abs=2)
    assert sum(size == 2 for size in called) < 2000 * 0.02


def test_a_team_is_whole_again_when_its_cores_are_free() -> None:
    attendance = Attendance(3)
    run_often(attendance, 0.5, 0.0, 8)
    called = run_often(attendance, 0.9, 0.008, 400)
    assert called[0] == 1
    assert called[-1] == 3


def test_a_disturbed_team_does_the_same_work_alone() -> None:
    """The real clocks: helpers that hardly run beside a caller that sleeps in the kernel."""
    team = Team(2)
    seen = np.zeros(2, np.int64)
    team.run(count_members, seen, num_products=LARGE)
    for _ in range(6):
        team.run(_Slow(), seen, num_products=LARGE)
    assert team.num_called == 1
    seen[:] = 0
    team.run(count_members, seen, num_products=LARGE)
    assert seen.tolist() == [1, 0]


class _Slow:
    """Called as a kernel is, on every thread; nobody runs in it."""

    overloads: tuple[object, ...] = ()

    def __call__(self, member: Member, *_: object) -> None:
        _begin(member)
        time.sleep(0.02)
