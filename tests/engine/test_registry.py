"""Plug-ins: a fault in one is said at the start, by its name."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

import pytest

from engine.generation import registry
from engine.generation.registry import StrategyLoadError, load_strategies
from engine.request.errors import InvalidRequestError
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import TinyModels, available, make_engine, strategy_context


def install(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    added = EntryPoint(name, value, registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(
        registry, "entry_points", lambda *, group: [*entry_points(group=group), added]
    )


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("broken", "no_such_package:Thing", "'broken' .no_such_package:Thing. cannot be loaded"),
        ("other", "collections:OrderedDict", "'other' .* is no GenerationStrategy"),
        ("deer", "engine.generation.autoregressive:Autoregressive", "two .* named 'deer'"),
    ],
)
def test_a_plug_in_that_cannot_be_used_stops_the_start_by_name(
    monkeypatch: pytest.MonkeyPatch, models: TinyModels, name: str, value: str, words: str
) -> None:
    install(monkeypatch, name, value)
    with pytest.raises(StrategyLoadError, match=words):
        load_strategies(strategy_context(models), available(models))


def test_the_same_strategy_found_twice_is_one(
    monkeypatch: pytest.MonkeyPatch, models: TinyModels
) -> None:
    install(monkeypatch, "ar", "engine.generation.autoregressive:Autoregressive")
    assert "ar" in load_strategies(strategy_context(models), available(models))


def test_an_unknown_mode_is_answered_with_those_there_are(models: TinyModels) -> None:
    with pytest.raises(InvalidRequestError, match=r"unknown mode 'warp'.*ar.*deer") as caught:
        make_engine(models).make_sequence("a", [1], SamplingParams(), mode="warp")
    assert caught.value.param == "mode"
