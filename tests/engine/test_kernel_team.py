"""Threads that run one kernel together: barriers, failures, and how they leave."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.models.cpu import team as kernels
from engine.models.cpu.team import Member, Team
from tests.engine.kernel_entries import entry
from tests.engine.kernel_models import load_runner, make_texts, read, save_kind

pytestmark = pytest.mark.usefixtures("all_helpers")

COUNTERS = np.zeros(17, np.int64), np.zeros(32, np.int64)
begin, leave, meet, share = map(entry, (kernels.begin, kernels.leave, kernels.meet, kernels.share))
LARGE = 10**9  # multiply-adds: worth a helper
EXIT = """
import sys
from numba import njit
from engine.models.cpu.team import Team, begin, leave

@njit(nogil=True)
def come_and_go(member):
    leave(member, begin(member))

team = Team(3)
team.run(come_and_go, num_products=10**9)
print("done", flush=True)
"""


def come_and_go(member: Member, *args: object) -> None:
    begin(member)
    leave(member, 1)


def wait_until_gone(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_all_have_come_before_anyone_goes_on(size: int) -> None:
    """Which costs a thread that waits its time, where there are more of them than cores."""
    seen = np.zeros((size, 20), np.int64)
    wrong: list[int] = []

    def kernel(member: Member) -> None:
        begin(member)
        barrier = 1
        for step in range(20):
            seen[member.rank, step] = 1
            barrier = meet(member, barrier)
            if not seen[:, step].all():
                wrong.append(step)
        leave(member, barrier)

    team = Team(size)
    for _ in range(3):
        seen[:] = 0
        team.run(kernel, num_products=LARGE)
    assert not wrong
    assert seen.all()


@pytest.mark.parametrize("count", [0, 1, 2, 7, 64])
def test_every_thing_is_in_one_members_share(count: int) -> None:
    for size in (1, 2, 3, 8):
        parts = [share(count, Member(rank, size, *COUNTERS)) for rank in range(size)]
        assert [i for first, end in parts for i in range(first, end)] == list(range(count))


@pytest.mark.parametrize("fails", [0, 1, 2])
def test_what_one_thread_raises_is_raised_by_the_call_and_holds_nobody_up(fails: int) -> None:
    num_done: list[int] = []

    def kernel(member: Member) -> None:
        begin(member)
        barrier = meet(member, 1)
        if member.rank == fails:
            raise MemoryError("no room")
        for _ in range(3):
            barrier = meet(member, barrier)
        num_done.append(member.rank)

    def call() -> None:
        team = Team(3)
        for _ in range(2):  # and the team is as good as before
            num_done.clear()
            with pytest.raises(MemoryError, match="no room"):
                team.run(kernel, num_products=LARGE)
            assert sorted(num_done) == [rank for rank in range(3) if rank != fails]
        team.run(come_and_go, num_products=LARGE)
        is_well.append(True)

    is_well: list[bool] = []
    caller = threading.Thread(target=call, daemon=True)  # no signal reaches who waits at a barrier
    caller.start()
    wait_until_gone([caller])
    assert is_well


def test_helpers_leave_with_their_team_and_keep_nothing_of_it() -> None:
    before = set(threading.enumerate())
    team = Team(3)
    helpers = [thread for thread in threading.enumerate() if thread not in before]
    assert len(helpers) == 2

    weights = np.zeros(8)
    trace = weakref.ref(weights)
    team.run(come_and_go, weights, num_products=LARGE)
    del weights
    deadline = time.monotonic() + 30
    while trace() is not None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert trace() is None, "an idle helper holds what it ran on last"
    del team
    gc.collect()
    wait_until_gone(helpers)


@pytest.mark.parametrize("ending", ["", "sys.exit(0)", "raise SystemExit"])
def test_a_process_ends_though_its_helpers_sleep(ending: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", EXIT + ending], capture_output=True, timeout=120, check=True
    )
    assert (ran.stdout, ran.stderr) == (b"done\n", b"")


def test_two_engines_run_in_one_process_at_once(tmp_path: Path) -> None:
    lengths = [60, 33]
    plan = [[(0, 30), (1, 20)], *[[(0, 1), (1, 1)]] * 13, [(0, 17)]]
    paths = [save_kind(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    texts = make_texts(lengths)
    alone = [read(load_runner(path, num_threads=1), texts, plan) for path in paths]
    runners = [load_runner(path, num_threads=2) for path in paths]
    found: dict[int, list[torch.Tensor]] = {}

    def serve(index: int) -> None:
        for _ in range(5):
            found[index] = read(runners[index], texts, plan)

    threads = [threading.Thread(target=serve, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    wait_until_gone(threads)
    for index in (0, 1):
        for logits, expected in zip(found[index], alone[index], strict=True):
            assert torch.equal(logits, expected)
