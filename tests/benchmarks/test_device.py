"""Table `device`: its code runs anywhere, its figures need the device."""

from __future__ import annotations

import pytest
import torch

from benchmarks.device import NOT_HERE, SCALED_DOWN, random_engine, read_bytes, run
from benchmarks.options import Options

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is such a device")
def test_without_the_device_the_row_says_so() -> None:
    assert [row[0] for row in run(Options()).rows] == [NOT_HERE]


def test_a_smoke_run_has_every_figure() -> None:
    table = run(Options(quick=True))
    assert len(table.rows) == 4
    for row in table.rows:
        assert isinstance(row[1], float) and row[1] > 0.0
    assert table.chart is not None


@pytest.mark.parametrize("is_tied", [False, True])
def test_embeddings_count_where_they_are_read_as_the_output_head(is_tied: bool) -> None:
    shape = {**SCALED_DOWN, "tie_word_embeddings": is_tied}
    verifier = random_engine(CPU, shape, compiled=False)._runner.verifier
    matrix = SCALED_DOWN["vocab_size"] * SCALED_DOWN["hidden_size"] * 4
    layers = sum(p.nbytes for p in verifier.model.model.parameters()) - matrix
    assert read_bytes(verifier) == layers + matrix
