"""Loss curves as a PNG, from the `log.jsonl` of one run or of several side by side."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

LOG, PNG = "log.jsonl", "loss.png"
SMOOTHING_PARTS = 40  # a smoothed curve forgets in this part of its run
TRIM = 0.02  # of the curve's smallest and largest values may lie outside the picture
DESCRIPTION = """\
Draw the loss of training runs over the tokens they read: every logged step in pale, smoothed in
full colour. RUN is a folder with a log.jsonl (OUT/run/verifier), or such a file.
"""


class DrawingError(RuntimeError):
    """Nothing to draw, or nothing to draw it with."""


@dataclass(frozen=True)
class Curve:
    """What a run has logged, in the order of its steps."""

    tokens: list[int]
    losses: list[float]
    shares: list[float]


def read_log(path: Path) -> Curve:
    """The log of a run, however often it was killed.

    A kill may leave half a line, and the steps since the last checkpoint are then made, and logged,
    once more: the later line holds.
    """
    by_step: dict[int, tuple[int, float, float]] = {}
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            step, values = entry["step"], (entry["tokens"], entry["loss"], entry["share"])
        except (ValueError, KeyError, TypeError):
            continue
        while by_step and next(reversed(by_step)) >= step:
            by_step.popitem()
        by_step[step] = values
    columns = [list(column) for column in zip(*by_step.values(), strict=True)] or [[], [], []]
    return Curve(*columns)


def smooth(losses: Sequence[float]) -> list[float]:
    """A running mean that is as sure of its first values as they allow."""
    keep = 1 - min(1.0, SMOOTHING_PARTS / max(1, len(losses)))
    mean, weight, smoothed = 0.0, 0.0, []
    for loss in losses:
        mean, weight = keep * mean + (1 - keep) * loss, keep * weight + (1 - keep)
        smoothed.append(mean / weight)
    return smoothed


def draw(
    logs: Mapping[str, Path], png: Path, row_lengths: Sequence[tuple[float, int]] = ()
) -> None:
    """One picture of all runs, by name; `row_lengths` are (until this share, length) pairs."""
    curves = {name: read_log(path) for name, path in logs.items()}
    curves = {name: curve for name, curve in curves.items() if curve.losses}
    if not curves:
        raise DrawingError(f"no step is logged in {', '.join(map(str, logs.values()))}")
    if importlib.util.find_spec("matplotlib") is None:
        raise DrawingError("drawing needs matplotlib: pip install 'dfastllm[training]'")
    # A Figure of its own draws with Agg and leaves no global state, as pyplot would.
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for number, (name, curve) in enumerate(curves.items()):
        axes.plot(curve.tokens, curve.losses, color=f"C{number}", alpha=0.25, linewidth=0.8)
        axes.plot(curve.tokens, smooth(curve.losses), color=f"C{number}", label=name)
    _mark_row_lengths(axes, next(iter(curves.values())), row_lengths)
    axes.set(xlabel="tokens read", ylabel="loss", ylim=_limits(curves))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(png, dpi=110)


def draw_stage(folder: Path, row_lengths: Sequence[tuple[float, int]] = ()) -> None:
    """Draw a finished stage beside its log; a picture that cannot be had stops no training."""
    try:
        draw({folder.name: folder / LOG}, folder / PNG, row_lengths)
    except (DrawingError, OSError) as error:
        logger.warning("no %s: %s", folder / PNG, error)


def _mark_row_lengths(axes: Axes, curve: Curve, row_lengths: Sequence[tuple[float, int]]) -> None:
    for (until, _), (_, length) in pairwise(row_lengths):
        at = next((t for t, s in zip(curve.tokens, curve.shares, strict=True) if s >= until), None)
        if at is not None:
            axes.axvline(at, color="gray", linestyle=":", linewidth=1)
            axes.text(
                at, 0.98, f" rows of {length:,}", transform=axes.get_xaxis_transform(), va="top"
            )


def _limits(curves: Mapping[str, Curve]) -> tuple[float, float]:
    """The first steps of a run would flatten all the rest."""
    losses = sorted(loss for curve in curves.values() for loss in curve.losses)
    outside = int(TRIM * len(losses))
    low, high = losses[outside], losses[-1 - outside]
    margin = 0.05 * (high - low) or 0.1
    return low - margin, high + margin


def main(arguments: list[str] | None = None) -> None:
    """`dfastllm plot RUN... --out PNG`."""
    parser = argparse.ArgumentParser(prog="dfastllm plot", description=DESCRIPTION)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder, or its log.jsonl"
    )
    parser.add_argument("--out", type=Path, default=Path(PNG), metavar="PNG", help="(%(default)s)")
    given = parser.parse_args(arguments)
    logs = [run / LOG if run.is_dir() else run for run in given.runs]
    names = _names([log.parent for log in logs])
    try:
        draw(dict(zip(names, logs, strict=True)), given.out)
    except (DrawingError, OSError) as error:
        parser.error(str(error))


def _names(folders: Sequence[Path]) -> list[str]:
    """Folder names, or whole paths where two are the same."""
    names = [folder.name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


if __name__ == "__main__":
    main()
