"""Every table that is listed can be run."""

from __future__ import annotations

import importlib

import pytest

from benchmarks.__main__ import TABLES


@pytest.mark.parametrize("name", TABLES)
def test_a_listed_table_has_a_module_that_runs_it(name: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.{name}").run)
