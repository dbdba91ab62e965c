"""Table `threads` on tiny models: engines that differ in their threads, beside busy processes."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

pytest.importorskip("numba")

from benchmarks.options import Options
from benchmarks.threads import COLUMNS, NEIGHBOURS, WRITING, _neighbours, _row, in_process_cases
from engine.engine_config import EngineConfig
from tests.engine.tiny_models import save_pair, tiny_drafter, tiny_qwen3
from tests.engine.tiny_tokenizers import make_byte_level


@pytest.fixture
def kernel_pair(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of a tiny pair with sizes that the kernels take."""
    verifier = tiny_qwen3(initializer_range=0.06, max_position_embeddings=512, head_dim=32)
    folders = save_pair(tmp_path, verifier, tiny_drafter(head_dim=32))
    make_byte_level(folders[0])
    return folders


def test_each_number_of_threads_is_measured_beside_each_number_of_neighbours(
    kernel_pair: tuple[Path, Path],
) -> None:
    verifier, drafter = map(str, kernel_pair)
    config = EngineConfig(model_path=verifier, drafter_path=drafter)
    cases = in_process_cases(Options(quick=True), config)
    names = {name.split(" ", 1)[1] for name in cases}
    assert len(cases) == len(NEIGHBOURS) * len(names) == 9
    sample = cases["0 1"](0)
    row = _row("0 1", {"0 1": [sample]})
    assert len(row) == len(COLUMNS)
    assert row[:2] == ["nobody", "1"]
    assert row[-3] == 1.0, "one thread by itself"
    assert all(isinstance(cell, float) and cell > 0 for cell in row[2:-1])


def test_neighbours_run_for_the_length_of_a_block() -> None:
    before = children()
    with _neighbours(2):
        assert len(children() - before) == 2
    assert children() == before


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_gains_are_over_all_loads_and_paired_by_round() -> None:
    one = [dict.fromkeys(WRITING, 1.0), dict.fromkeys(WRITING, 10.0)]
    two = [dict.fromkeys(WRITING, 2.0), dict.fromkeys(WRITING, 20.0)]
    two[0][WRITING[0]] = 2.0 * 2 ** len(WRITING)
    row = _row("server 2", {"server 1": one, "server 2": two})
    assert row[:3] == ["the server", "2", "-"]
    assert math.isclose(float(row[-3]), 2.0), "the median of 4 and 2, the lower one"
