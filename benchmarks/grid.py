"""Ways of generating over temperatures and loads, as the tables have them that compare ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from benchmarks.results import Cell, Chart
from benchmarks.rounds import Sample, interleave, middle

TEMPERATURES = (0.0, 1.0)

Measure = Callable[[str, float, int, int], Sample]
"""Name of the way, temperature, sequences at once, round -> figures, `tokens_s` among them."""
Row = Callable[[str, float, int, Mapping[str, list[Sample]]], list[Cell]]
"""Name of the way, temperature, sequences at once, samples of all ways -> its row."""


@dataclass
class Grid:
    """What a table is made of."""

    rows: list[list[Cell]] = field(default_factory=list)
    samples: dict[str, object] = field(default_factory=dict)
    bars: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def chart(self) -> Chart:
        return Chart("tokens / s", self.bars)


def measure_grid(
    names: Iterable[str], loads: Iterable[int], num_rounds: int, measure: Measure, row: Row
) -> Grid:
    """Measure every way at each temperature and load; the ways of one load are interleaved."""
    grid, names, loads = Grid(), list(names), list(loads)
    for temperature in TEMPERATURES:
        for at_once in loads:
            cases = {name: partial(measure, name, temperature, at_once) for name in names}
            samples = interleave(cases, num_rounds)
            bars = grid.bars.setdefault(f"{at_once} at once\nT = {temperature:g}", {})
            for name, own in samples.items():
                grid.rows.append(row(name, temperature, at_once, samples))
                bars[name] = middle(own, "tokens_s")
                grid.samples[f"{name}, T={temperature:g}, {at_once} at once"] = own
    return grid
