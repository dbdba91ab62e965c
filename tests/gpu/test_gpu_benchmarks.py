"""Table `device` on a CUDA device: with CUDA graphs, scaled down."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.device import GRAPHS, run
from benchmarks.options import Options

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_the_table_runs_with_cuda_graphs() -> None:
    table = run(Options(quick=True))
    assert GRAPHS in table.notes[0]
    assert all(isinstance(row[1], float) and row[1] > 0.0 for row in table.rows)
