"""Threads and their waiting: chosen by rule, unless somebody has said otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.cpu_threads import available_cores, count_cores, read_quota, set_cpu_policy


def test_all_cores_are_shared_by_the_workers_and_waiting_is_passive() -> None:
    environ: dict[str, str] = {}
    words = set_cpu_policy(environ, num_workers=1)
    assert environ["VDIFF_CPU_THREADS"] == environ["OMP_NUM_THREADS"] == str(available_cores())
    assert environ["OMP_WAIT_POLICY"] == "passive"
    assert f"{available_cores()} cores for 1 worker(s)" in words
    assert "waiting passive" in words


def test_more_workers_than_cores_have_one_thread_each() -> None:
    environ: dict[str, str] = {}
    set_cpu_policy(environ, num_workers=available_cores() + 1)
    assert environ["VDIFF_CPU_THREADS"] == "1"


def test_our_own_setting_goes_before_openmps_and_openmps_before_the_rule() -> None:
    environ = {"VDIFF_CPU_THREADS": "3", "OMP_NUM_THREADS": "7", "OMP_WAIT_POLICY": "active"}
    set_cpu_policy(environ)
    assert environ["OMP_NUM_THREADS"] == "3"
    assert environ["OMP_WAIT_POLICY"] == "active"
    environ = {"VDIFF_CPU_THREADS": "auto", "OMP_NUM_THREADS": "7"}
    set_cpu_policy(environ)
    assert environ["VDIFF_CPU_THREADS"] == environ["OMP_NUM_THREADS"] == "7"


def test_hyperthreads_of_one_core_count_once(tmp_path: Path) -> None:
    for number, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    assert count_cores({0, 1, 2, 3}, tmp_path) == 2
    assert count_cores({0, 2}, tmp_path) == 1
    assert count_cores({0, 1, 8}, tmp_path) == 3, "one of which nothing is known is one"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_control_groups_quota_is_read(
    files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read_quota(tmp_path) == quota
