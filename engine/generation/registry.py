"""Strategies by name, from the entry points of every installed package, ours among them."""

from __future__ import annotations

from importlib.metadata import entry_points

from engine.generation.strategy import GenerationStrategy, ModelRole, StrategyContext

ENTRY_POINT_GROUP = "dfastllm.strategies"


def load_strategies(
    context: StrategyContext, available: frozenset[ModelRole]
) -> dict[str, GenerationStrategy]:
    """Make every installed strategy whose models are there."""
    strategies: dict[str, GenerationStrategy] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        strategy = point.load()
        if not (isinstance(strategy, type) and issubclass(strategy, GenerationStrategy)):
            raise TypeError(f"strategy {point.name!r} ({point.value}) is no GenerationStrategy")
        if strategy.can_run(available):
            strategies[point.name] = strategy(context)
    return strategies
