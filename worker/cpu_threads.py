"""How many threads torch may use, and how they wait; decided before torch is imported."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

THREADS_NAME = "VDIFF_CPU_THREADS"


def available_cores() -> int:
    """Count the cores this process may use, which in a container can be fewer than there are."""
    return len(os.sched_getaffinity(0))


def set_cpu_policy(environ: MutableMapping[str, str], num_workers: int = 1) -> str:
    """Set OpenMP's threads and waiting in `environ`; return in words what was chosen and why.

    A thread that spins while it waits starves the API, Redis and the clients, and then itself;
    passive waiting costs a little on a quiet machine, and a server's machine is not quiet.
    """
    policy = environ.setdefault("OMP_WAIT_POLICY", "passive")
    if environ.get(THREADS_NAME, "auto") not in ("", "auto"):
        environ["OMP_NUM_THREADS"] = environ[THREADS_NAME]
        return _words(environ, policy, f"as {THREADS_NAME} says")
    if "OMP_NUM_THREADS" in environ:
        return _words(environ, policy, "as OMP_NUM_THREADS says")
    cores = available_cores()
    environ["OMP_NUM_THREADS"] = str(max(1, cores // num_workers))
    return _words(environ, policy, f"{cores} cores for {num_workers} worker(s)")


def _words(environ: MutableMapping[str, str], policy: str, reason: str) -> str:
    return f"{environ['OMP_NUM_THREADS']} CPU threads ({reason}), waiting {policy}"
