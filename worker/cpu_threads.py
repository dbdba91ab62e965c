"""How many threads forwards may use on a CPU, and how torch's wait; before torch is imported."""

from __future__ import annotations

import os
from collections.abc import Collection, MutableMapping
from pathlib import Path

THREADS_NAME = "VDIFF_CPU_THREADS"
_CPUS = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Count the cores this process may use, which in a container can be fewer than there are.

    Two hyperthreads of a core count as one: they share the units that a matrix product keeps busy.
    A quota of processor time counts as the whole cores in it, because a process that has used its
    own up is stopped, all threads at once.
    """
    cores = count_cores(os.sched_getaffinity(0), _CPUS)
    quota = read_quota(_CGROUP)
    return cores if quota is None else max(1, min(cores, int(quota)))


def count_cores(numbers: Collection[int], cpus: Path) -> int:
    """Count the cores behind these logical CPUs; `cpus` is /sys/devices/system/cpu."""
    return len({_siblings(number, cpus) for number in numbers})


def read_quota(cgroup: Path) -> float | None:
    """Cores' worth of time that this control group has, version 2 or 1; None: no limit."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            folder = cgroup / "cpu"
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
            )
        return int(quota) / int(period) if quota.isdecimal() else None
    except (OSError, ValueError):
        return None


def set_cpu_policy(environ: MutableMapping[str, str], num_workers: int = 1) -> str:
    """Set in `environ` the threads of forwards and OpenMP's; return what was chosen and why.

    A core each, shared out among the workers. Other processes on them are no reason for fewer: the
    kernels do with less while they are disturbed (`engine/models/cpu/attendance.py`). Torch's
    threads cannot. Those that spin while they wait starve the API, Redis and the clients, and then
    themselves; so OpenMP waits passively, and torch gets one thread where the kernels run.
    """
    policy = environ.setdefault("OMP_WAIT_POLICY", "passive")
    if environ.get(THREADS_NAME, "auto").strip() not in ("", "auto"):
        reason = f"as {THREADS_NAME} says"
    elif "OMP_NUM_THREADS" in environ:
        environ[THREADS_NAME], reason = environ["OMP_NUM_THREADS"], "as OMP_NUM_THREADS says"
    else:
        cores = available_cores()
        environ[THREADS_NAME] = str(max(1, cores // num_workers))
        reason = f"{cores} cores for {num_workers} worker(s)"
    environ["OMP_NUM_THREADS"] = environ[THREADS_NAME]
    return f"{environ[THREADS_NAME]} CPU threads ({reason}), OpenMP waiting {policy}"


def _siblings(number: int, cpus: Path) -> str:
    """What all logical CPUs of one core have in common."""
    try:
        return (cpus / f"cpu{number}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(number)
