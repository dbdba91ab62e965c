"""The engine's shared shapes: statistics, settings, caches, measures, and the protocols."""

from __future__ import annotations

import math
from collections.abc import Generator as Iteration
from dataclasses import FrozenInstanceError, dataclass, field, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.base import (
    BaseCache,
    BaseConfig,
    BaseController,
    BaseStats,
    Cacheable,
    ConfidenceComputer,
    EntropyComputer,
    Generator,
    HasStats,
)
from tests.engine.engines import TinyModels, batcher_of, make_engine


@dataclass
class Counts(BaseStats):
    num_seen: int = 0
    num_found: int = 0
    by_length: list[int] = field(default_factory=lambda: [0, 0])

    @property
    def found_rate(self) -> float:
        return self.num_found / self.num_seen if self.num_seen else 0.0


@dataclass(frozen=True)
class Limits(BaseConfig):
    low: int = 1
    high: int = 9

    def validate(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low must not exceed high, got {self.low} > {self.high}")


def test_reset_rebuilds_made_defaults_anew_each_time() -> None:
    counts = Counts(num_seen=3, by_length=[4, 5])
    counts.reset()
    assert counts == Counts()
    counts.by_length[0] = 7
    counts.reset()
    assert counts.by_length == [0, 0], "a default that was changed in place came back"
    assert counts.to_dict() == {"num_seen": 0, "num_found": 0, "by_length": [0, 0]}


def test_a_ratio_follows_its_counts_and_is_no_count_itself() -> None:
    counts = Counts(num_seen=4, num_found=1)
    assert counts.found_rate == 0.25
    assert "found_rate" not in counts.to_dict()
    counts.reset()
    assert counts.found_rate == 0.0


def test_settings_are_checked_when_made_by_whatever_way() -> None:
    for make in (
        lambda: Limits(low=10),
        lambda: Limits.from_dict({"low": 10}),
        lambda: replace(Limits(), high=0),
    ):
        with pytest.raises(ValueError, match="low must not exceed high"):
            make()


def test_settings_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Limits().low = 2  # type: ignore[misc]


def test_an_unknown_setting_is_an_error_that_names_it_and_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"Limits has no field 'hihg'; it has low, high"):
        Limits.from_dict({"low": 2, "hihg": 3})
    assert Limits.from_dict(Limits(low=2).to_dict()) == Limits(low=2)


def test_a_controller_without_both_verbs_cannot_be_made() -> None:
    class Deaf(BaseController[int, int]):
        def recommend(self) -> int:
            return 0

    with pytest.raises(TypeError, match="update"):
        Deaf()  # type: ignore[abstract]


def test_overwriting_a_value_evicts_no_other() -> None:
    cache = BaseCache[str, int](2)
    cache.put("a", 1)
    cache.put("b", 2)
    cache.put("b", 3)
    assert (cache.get("a"), cache.get("b"), len(cache)) == (1, 3, 2)
    assert cache.stats.num_evictions == 0


def test_what_was_not_used_for_longest_makes_room() -> None:
    cache = BaseCache[str, int](2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert ("a" in cache, "b" in cache, "c" in cache) == (True, False, True)
    assert cache.get("b") is None
    assert cache.stats.to_dict() == {"num_hits": 1, "num_misses": 1, "num_evictions": 1}
    assert cache.stats.hit_rate == 0.5


def test_a_dear_value_makes_room_for_its_cost_and_one_too_dear_pushes_nobody_out() -> None:
    cache = BaseCache[str, str](6, len)
    for key in "abc":
        cache.put(key, key * 2)
    cache.put("d", "dddd")
    assert ("a" in cache, "b" in cache, "c" in cache, cache.total_cost) == (False, False, True, 6)
    cache.put("e", "e" * 7)
    assert ("c" in cache, "d" in cache, "e" in cache) == (True, True, False)
    cache.put("d", "d" * 7)
    assert "d" not in cache, "the old value would be a wrong answer"
    cache.clear()
    assert (len(cache), cache.total_cost) == (0, 0)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 5)), max_size=40))
def test_a_cache_never_holds_more_than_its_capacity(puts: list[tuple[str, int]]) -> None:
    cache = BaseCache[str, int](7, lambda value: value)
    for key, value in puts:
        cache.put(key, value)
        held = {key: cache.get(key) for key in "abcdef" if key in cache}
        assert cache.total_cost == sum(filter(None, held.values())) <= 7
        assert held.get(key) == value


def test_a_flat_distribution_has_the_highest_entropy_and_a_certain_one_none() -> None:
    flat = torch.zeros(2, 3, 8)
    certain = torch.full((8,), -torch.inf)
    certain[3] = 0.0
    assert EntropyComputer()(flat).shape == (2, 3)
    assert EntropyComputer()(flat).flatten().tolist() == pytest.approx([math.log(8)] * 6)
    assert EntropyComputer(normalized=True)(flat[0]).tolist() == pytest.approx([1.0] * 3)
    assert EntropyComputer()(certain).item() == 0.0, "a token at -inf must not give NaN"
    assert EntropyComputer(top_k=1, normalized=True)(flat[0, 0]).item() == 0.0


def test_entropy_of_the_likeliest_tokens_leaves_the_others_out() -> None:
    logits = torch.tensor([0.6, 0.2, 0.1, 0.1]).log()
    halves = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert EntropyComputer(top_k=2)(logits).item() == pytest.approx(halves)
    share = halves / math.log(2)
    assert EntropyComputer(top_k=2, normalized=True)(logits).item() == pytest.approx(share)
    assert EntropyComputer(top_k=9)(logits).item() == pytest.approx(EntropyComputer()(logits))


def test_confidence_is_of_the_likeliest_token_alone_or_against_the_next() -> None:
    logits = torch.tensor([[0.6, 0.2, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]]).log()
    cases = {
        ConfidenceComputer(): [0.6, 0.25],
        ConfidenceComputer(top_k=2): [0.75, 0.5],
        ConfidenceComputer(normalized=True): [(0.6 - 0.25) / 0.75, 0.0],
        ConfidenceComputer(is_margin=True): [0.4, 0.0],
        ConfidenceComputer(top_k=1, normalized=True): [1.0, 1.0],
    }
    for compute, expected in cases.items():
        assert compute(logits).tolist() == pytest.approx(expected, abs=1e-6), compute


@pytest.mark.parametrize("kind", [EntropyComputer, ConfidenceComputer])
def test_a_computer_keeps_its_choices_and_refuses_impossible_ones(
    kind: type[EntropyComputer] | type[ConfidenceComputer],
) -> None:
    with pytest.raises(FrozenInstanceError):
        kind().top_k = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        kind(top_k=0)


def test_the_protocols_hold_for_the_real_classes_and_tell_others_apart(
    models: TinyModels,
) -> None:
    engine = make_engine(models)
    deer = batcher_of(engine).strategies["deer"]
    assert isinstance(engine, Generator)
    assert isinstance(engine, HasStats)
    assert isinstance(deer, HasStats)
    assert isinstance(BaseCache[str, int](1), Cacheable)
    loop: Iteration[int, None, None] = (number for number in range(3))
    for other in (loop, torch.Generator(), deer, BaseCache[str, int](1)):
        assert not isinstance(other, Generator), "it generates no texts"
    assert not isinstance(Counts(), Cacheable)
    assert not isinstance(batcher_of(engine).strategies["ar"], HasStats)
