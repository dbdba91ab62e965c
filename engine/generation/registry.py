"""Strategies by name, from the entry points of every installed package, ours among them."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from itertools import combinations

from engine.generation.strategy import GenerationStrategy, ModelRole, StrategyContext

ENTRY_POINT_GROUP = "dfastllm.strategies"


class StrategyLoadError(RuntimeError):
    """A plug-in that cannot be used; the message names it and the package it came with."""


def load_strategies(
    context: StrategyContext, available: frozenset[ModelRole], disabled: Collection[str] = ()
) -> dict[str, GenerationStrategy]:
    """Make every installed strategy whose models are there; raises `StrategyLoadError`."""
    return {
        name: kind.make(context)
        for name, kind in strategy_kinds().items()
        if name not in disabled and kind.can_run(available)
    }


def strategy_kinds() -> dict[str, type[GenerationStrategy]]:
    """Every installed strategy by name; raises `StrategyLoadError`."""
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        other = points.setdefault(point.name, point)
        if other.value != point.value:
            raise StrategyLoadError(
                f"two strategies are named {point.name!r}: {_origin(other)} and {_origin(point)}"
            )
    return {name: _load(point) for name, point in points.items()}


def missing_roles(
    kind: type[GenerationStrategy], available: frozenset[ModelRole]
) -> list[tuple[ModelRole, ...]]:
    """The smallest sets of further models with which a strategy could run, each as good."""
    absent = [role for role in ModelRole if role not in available]
    for size in range(len(absent) + 1):
        enough = [
            added
            for added in combinations(absent, size)
            if kind.can_run(available | frozenset(added))
        ]
        if enough:
            return enough
    return []


def _load(point: EntryPoint) -> type[GenerationStrategy]:
    try:
        kind = point.load()
    except Exception as error:  # boundary: code of another package, which may fail in any way
        raise StrategyLoadError(f"strategy {_origin(point)} cannot be loaded: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, GenerationStrategy)):
        raise StrategyLoadError(f"strategy {_origin(point)} is no GenerationStrategy")
    return kind


def _origin(point: EntryPoint) -> str:
    package = "" if point.dist is None else f" of package {point.dist.name}"
    return f"{point.name!r} ({point.value}{package})"
