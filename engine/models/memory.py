"""What memory is free for weights, so that a model that does not fit is refused with numbers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from engine.models.checkpoint import UnsupportedModelError

logger = logging.getLogger("dfastllm.engine")

MEMINFO = Path("/proc/meminfo")
OWN_CGROUP = Path("/proc/self/cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")


def claim_memory(num_bytes: int, device: torch.device, what: str) -> None:
    """Say what is about to be taken; raise `UnsupportedModelError` where it cannot be had.

    Weights pass through host memory on their way to an accelerator, so both must have room.
    """
    logger.info("%s needs %.2f GiB on %s", what, num_bytes / 2**30, device)
    places = {str(device): free_device_memory(device)} if device.type == "cuda" else {}
    for place, free in (places | {"the host": free_host_memory()}).items():
        if free is not None and num_bytes > free:
            raise UnsupportedModelError(
                f"{what} does not fit: its weights need {num_bytes / 2**30:.2f} GiB, "
                f"{place} has {free / 2**30:.2f} GiB free"
            )


def free_device_memory(device: torch.device) -> int:
    """Bytes free on a CUDA device."""
    free, _ = torch.cuda.mem_get_info(device)
    return free


def free_host_memory() -> int | None:
    """Bytes that may still be taken here, by what is available and by cgroup limits."""
    known = [*_available_to_the_machine(), *_left_by_cgroups()]
    return min(known, default=None)


def _available_to_the_machine() -> Iterator[int]:
    if MEMINFO.exists():
        for line in MEMINFO.read_text("utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024


def _left_by_cgroups() -> Iterator[int]:
    """Of the own cgroup (v2) and of each above it, what its limit leaves."""
    if not OWN_CGROUP.exists():
        return
    unified = [x for x in OWN_CGROUP.read_text("utf-8").splitlines() if x.startswith("0::")]
    for line in unified:
        own = CGROUP_ROOT / line.removeprefix("0::").lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(CGROUP_ROOT):
                yield from _left_in(folder)


def _left_in(folder: Path) -> Iterator[int]:
    try:
        limit = (folder / "memory.max").read_text("utf-8").strip()
        used = int((folder / "memory.current").read_text("utf-8"))
        stat = dict(x.split() for x in (folder / "memory.stat").read_text("utf-8").splitlines())
    except (OSError, ValueError):  # not every level has the memory controller
        return
    if limit != "max":
        # Cached file pages are counted as used, and given back when they are wanted.
        yield max(0, int(limit) - used + int(stat.get("inactive_file", 0)))
