"""Threads and their waiting: chosen by rule, unless somebody has said otherwise."""

from __future__ import annotations

from worker.cpu_threads import available_cores, set_cpu_policy


def test_all_cores_are_shared_by_the_workers_and_waiting_is_passive() -> None:
    environ: dict[str, str] = {}
    words = set_cpu_policy(environ, num_workers=1)
    assert environ["OMP_NUM_THREADS"] == str(available_cores())
    assert environ["OMP_WAIT_POLICY"] == "passive"
    assert "waiting passive" in words


def test_more_workers_than_cores_have_one_thread_each() -> None:
    environ: dict[str, str] = {}
    set_cpu_policy(environ, num_workers=available_cores() + 1)
    assert environ["OMP_NUM_THREADS"] == "1"


def test_our_own_setting_goes_before_openmps_and_openmps_before_the_rule() -> None:
    environ = {"VDIFF_CPU_THREADS": "3", "OMP_NUM_THREADS": "7", "OMP_WAIT_POLICY": "active"}
    set_cpu_policy(environ)
    assert environ["OMP_NUM_THREADS"] == "3"
    assert environ["OMP_WAIT_POLICY"] == "active"
    environ = {"VDIFF_CPU_THREADS": "auto", "OMP_NUM_THREADS": "7"}
    set_cpu_policy(environ)
    assert environ["OMP_NUM_THREADS"] == "7"
