"""What kernels are given again and again: the caller's own arrays, in room for every forward."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from engine.models.cpu.held import HeldRoom, hold
from engine.models.cpu.kernel import kernel
from engine.models.cpu.rows import Packed


@kernel
def double_first(held):
    """The sum of the second numbers, in parts; the first ones are doubled."""
    (first, factor), (second, _) = held.value
    first[:] = first * factor
    total = 0.0
    for number in second[1:]:
        total += number
    return total


def test_a_kernel_works_on_the_callers_own_arrays_and_counts_none_of_them() -> None:
    arrays = np.arange(3.0), np.arange(4.0)
    held = hold(((arrays[0], 2.0), (arrays[1], 1.0)))
    counts = [sys.getrefcount(array) for array in arrays]
    for turn in range(3):
        assert double_first(held) == 6.0
        assert arrays[0].tolist() == [0.0, 2.0 ** (turn + 1), 2.0 ** (turn + 2)]
    assert [sys.getrefcount(array) for array in arrays] == counts == [2 + 1] * 2


def spans(num_rows: int, num_positions: int) -> Packed:
    return Packed(np.zeros(0, np.int64), num_rows, num_positions)


def test_room_is_made_anew_only_for_what_does_not_fit() -> None:
    made: list[tuple[int, int]] = []

    def make(num_rows: int, num_positions: int) -> Any:
        made.append((num_rows, num_positions))
        return np.zeros((num_rows, num_positions)), 1.0

    def ask(num_rows: int, num_positions: int) -> None:
        room.of(spans(num_rows, num_positions), make)
        assert made[-1][0] >= num_rows
        assert made[-1][1] >= num_positions

    room = HeldRoom()
    for num_rows, num_positions in ((8, 200), (1, 256), (64, 30), (65, 3), (100, 256), (1, 257)):
        ask(num_rows, num_positions)
    assert made == [(64, 256), (128, 256), (128, 512)]


def test_room_that_could_not_be_made_is_asked_for_again() -> None:
    sizes: list[int] = []

    def make(num_rows: int, num_positions: int) -> Any:
        sizes.append(num_rows)
        if len(sizes) == 2:
            raise MemoryError
        return np.zeros(num_rows), 1.0

    room = HeldRoom()
    small = room.of(spans(8, 8), make)
    with pytest.raises(MemoryError):
        room.of(spans(500, 8), make)
    assert room.of(spans(8, 8), make) is small
    assert room.of(spans(500, 8), make) is not small
    assert sizes == [64, 512, 512]
