"""The header of every run: where, on what and with which settings its figures came about."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.options import Options
from worker.cpu_threads import THREADS_NAME, available_cores

ROOT = Path(__file__).parent.parent
_SECRETS = (
    *("VDIFF_API_KEY", "VDIFF_REDIS_URL"),
    *("VDIFF_PREFIX_CACHE_REDIS_URL", "VDIFF_PREFIX_CACHE_SECRET"),
)
_PACKAGES = ("torch", "transformers", "rq", "redis", "litestar", "uvicorn")


def describe(options: Options) -> dict[str, object]:
    """Everything that somebody needs to judge, or to repeat, the figures of this run."""
    return {
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": device(),
        "cores": available_cores(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
        # Torch's own number changes with the engines that a table builds.
        "threads": int(os.environ.get(THREADS_NAME) or torch.get_num_threads()),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "active"),
        "settings": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith("VDIFF_") and name not in _SECRETS
        },
        "rounds": options.num_rounds,
        "seed": options.seed,
        "prompts": str(options.data.name) if options.data else "generated",
        "is_smoke_run": options.quick,
    }


def commit() -> str:
    """The commit, with a plus where tracked files differ from it."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        return name + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def device() -> str:
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _git(*args: str) -> str:
    done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
