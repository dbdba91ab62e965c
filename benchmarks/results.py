"""A table and its way to disk: Markdown to read, JSON with every sample, a picture if it can be."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

Cell = str | int | float
MANY_SERIES = 4  # the figures on more must stand upright
MIN_WIDTH = 7.0
"""Inches: room for the title."""


@dataclass(frozen=True)
class Chart:
    """Bars in groups: `bars[group][series]`."""

    unit: str
    bars: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Table:
    """What one benchmark has found."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    samples: Mapping[str, object] = field(default_factory=dict)
    """Every single measurement, by case, for the JSON file."""
    chart: Chart | None = None


def markdown(table: Table, header: Mapping[str, object]) -> str:
    """The table as a page that says where its figures come from."""
    lines = [f"# {table.title}", ""]
    if header.get("is_smoke_run"):
        lines += ["**A smoke run: these figures mean nothing.**", ""]
    lines += [
        f"`{header['command']}` on {header['device']} ({header['cores']} cores, "
        f"{header['threads']} threads, waiting {header['wait_policy']}, load average "
        f"{header['load_average']:.1f} at the start), commit {header['commit']}, {header['time']}.",
        "",
        _line(table.columns),
        _line(["---", *("--:" for _ in table.columns[1:])]),
        *(_line([shown(cell) for cell in row]) for row in table.rows),
        "",
        *(f"* {note}" for note in table.notes),
    ]
    return "\n".join(lines) + "\n"


def write(table: Table, header: Mapping[str, object], folder: Path) -> list[Path]:
    """Write all forms of the table and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page, data = folder / f"{table.name}.md", folder / f"{table.name}.json"
    page.write_text(markdown(table, header), "utf-8")
    text = json.dumps(_finite({"environment": header, **asdict(table)}), indent=1)
    data.write_text(text + "\n", "utf-8")
    picture = folder / f"{table.name}.png"
    return [page, data, *([picture] if _draw(table, picture) else [])]


def shown(cell: Cell) -> str:
    """A figure with three digits that count."""
    if isinstance(cell, str | int):
        return str(cell)
    if not math.isfinite(cell):
        return "-"
    if abs(cell) >= 100:
        return f"{cell:.0f}"
    return f"{cell:.3g}" if abs(cell) < 1 else f"{cell:.{2 if abs(cell) < 10 else 1}f}"


def _finite(value: object) -> object:
    """The same with null for every figure that is not there, as JSON knows no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _draw(table: Table, path: Path) -> bool:
    """Draw the chart, where there is one and matplotlib is installed."""
    if table.chart is None:
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    groups, bars = list(table.chart.bars), table.chart.bars
    series = list(dict.fromkeys(name for group in bars.values() for name in group))
    is_crowded = len(series) > MANY_SERIES
    group_width = max(1.3, 0.32 * len(series))
    inches = max(MIN_WIDTH, 3.0 + group_width * len(groups))
    figure = Figure(figsize=(inches, 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(series)
    for index, name in enumerate(series):
        places = [place + index * width for place in range(len(groups))]
        drawn = axes.bar(places, [bars[g].get(name, 0.0) for g in groups], width, label=name)
        axes.bar_label(
            drawn, fmt=lambda value: shown(float(value)), fontsize=8, rotation=90 * is_crowded
        )
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(groups))], groups)
    axes.set_ylabel(table.chart.unit)
    axes.set_title(table.title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120)
    return True
