"""How packed weights lie in memory."""

from __future__ import annotations

import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.models.cpu.weights import join

MIB = 1 << 20
SMAPS = Path("/proc/self/smaps")


@pytest.mark.parametrize("sizes", [[5], [3, 0, 4], [MIB // 2], [300_000, 700_000, 17]])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.uint32])
def test_arrays_of_any_size_are_joined_in_their_order(sizes: list[int], dtype: Any) -> None:
    parts = [np.arange(size).astype(dtype).reshape(1, size) for size in sizes]
    joined = join(parts)
    assert joined.dtype == dtype
    assert np.array_equal(joined, np.concatenate(parts, axis=1)[0])


@pytest.mark.skipif(
    not (hasattr(mmap, "MADV_HUGEPAGE") and SMAPS.exists()), reason="needs Linux' huge pages"
)
def test_large_weights_ask_for_huge_pages_and_begin_at_one() -> None:
    large = join([np.zeros(3 * MIB, np.uint8)])
    assert large.ctypes.data % (2 * MIB) == 0
    assert "hg" in flags_of(large.ctypes.data)


def flags_of(address: int) -> list[str]:
    """What the kernel says of the memory there, by proc_pid_smaps(5)."""
    is_there = False
    for line in SMAPS.read_text().splitlines():
        if (found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)) is not None:
            is_there = int(found[1], 16) <= address < int(found[2], 16)
        elif is_there and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError("nothing is there")
