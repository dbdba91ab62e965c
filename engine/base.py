"""Shapes that all parts of the engine share: statistics, settings, controllers, measures."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, fields
from typing import Any, Generic, Protocol, Self, TypeVar, runtime_checkable

from torch import Tensor
from torch.special import entr

Key = TypeVar("Key")
AskedKey = TypeVar("AskedKey", contravariant=True)
Value = TypeVar("Value")
Observation = TypeVar("Observation", contravariant=True)
Recommendation = TypeVar("Recommendation", covariant=True)


@runtime_checkable
class Generator(Protocol):
    """Anything that completes texts."""

    def generate(
        self, prompts: Seq[str], params: Any = None, *, mode: str | None = None
    ) -> list[str]: ...


@runtime_checkable
class HasStats(Protocol):
    """Anything that counts what it does."""

    def get_stats(self) -> dict[str, Any]: ...
    def reset_stats(self) -> None: ...


@runtime_checkable
class Cacheable(Protocol[AskedKey, Value]):
    """A keyed store."""

    def get(self, key: AskedKey) -> Value | None: ...
    def put(self, key: AskedKey, value: Value) -> None: ...
    def clear(self) -> None: ...
    def __len__(self) -> int: ...


@dataclass
class BaseStats:
    """Counts of events; ratios are properties of the subclass, so nothing can go stale."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def reset(self) -> None:
        """Put every field back to its default."""
        fresh = type(self)()
        for field in fields(self):
            setattr(self, field.name, getattr(fresh, field.name))


@dataclass(frozen=True)
class BaseConfig:
    """Settings that are checked whenever they are made, by `replace`, too, and never change."""

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raise ValueError naming the first field whose value cannot be meant."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make settings of plain values; ValueError names a key that is no field."""
        known = [field.name for field in fields(cls) if field.init]
        for name in values:
            if name not in known:
                raise ValueError(f"{cls.__name__} has no field {name!r}; it has {', '.join(known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class BaseController(ABC, Generic[Observation, Recommendation]):
    """Turns a strategy's knobs while it runs: learns from what happened, says what to do next."""

    @abstractmethod
    def update(self, observation: Observation) -> None:
        """Learn from one observation."""

    @abstractmethod
    def recommend(self) -> Recommendation:
        """What to do next, as far as is known; changes nothing."""


@dataclass
class CacheStats(BaseStats):
    """What became of the questions to a cache."""

    num_hits: int = 0
    num_misses: int = 0
    num_evictions: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the questions that found something; 0 before the first."""
        asked = self.num_hits + self.num_misses
        return self.num_hits / asked if asked else 0.0


class BaseCache(Generic[Key, Value]):
    """A keyed store of limited cost: what was not used for longest makes room."""

    def __init__(self, capacity: int, cost: Callable[[Value], int] = lambda value: 1) -> None:
        """`cost` of a value is in the unit of `capacity`; by default each value costs 1."""
        if capacity < 0:
            raise ValueError(f"capacity must not be negative, got {capacity}")
        self.capacity = capacity
        self.stats = CacheStats()
        self._cost_of = cost
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._total = 0

    @property
    def total_cost(self) -> int:
        """Of all values that are in it; never above the capacity."""
        return self._total

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def get(self, key: Key) -> Value | None:
        """The value, which thereby was used last; None where there is none."""
        entry = self._entries.get(key)
        if entry is None:
            self.stats.num_misses += 1
            return None
        self._entries.move_to_end(key)
        self.stats.num_hits += 1
        return entry[0]

    def put(self, key: Key, value: Value) -> None:
        """Keep a value instead of what `key` had; one dearer than the whole store is not kept."""
        self.discard(key)  # first, or a value would push others out for room that it has itself
        cost = self._cost_of(value)
        if cost > self.capacity:
            return
        while self._total + cost > self.capacity:
            self._total -= self._entries.popitem(last=False)[1][1]
            self.stats.num_evictions += 1
        self._entries[key] = value, cost
        self._total += cost

    def discard(self, key: Key) -> None:
        """Forget a value, if it is there."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._total -= entry[1]

    def clear(self) -> None:
        self._entries.clear()
        self._total = 0


@dataclass(frozen=True)
class EntropyComputer:
    """Entropy of the distribution that logits stand for, in nats."""

    top_k: int | None = None  # of the k likeliest tokens alone, their probabilities rescaled
    normalized: bool = False  # as a share of the highest possible: 0 is certain, 1 is flat

    def __post_init__(self) -> None:
        _check_top_k(self.top_k)

    def __call__(self, logits: Tensor) -> Tensor:
        """[..., V] -> [...] float32; tokens at -inf are impossible and add nothing."""
        kept = _likeliest(logits, self.top_k)
        entropy: Tensor = entr(kept.softmax(-1)).sum(-1)
        return entropy / math.log(max(kept.shape[-1], 2)) if self.normalized else entropy


@dataclass(frozen=True)
class ConfidenceComputer:
    """How sure logits are of their likeliest token."""

    top_k: int | None = None  # among the k likeliest tokens alone, their probabilities rescaled
    normalized: bool = False  # so that a flat distribution has 0 instead of 1 / V
    is_margin: bool = False  # the lead over the second likeliest, instead of the probability

    def __post_init__(self) -> None:
        _check_top_k(self.top_k)

    def __call__(self, logits: Tensor) -> Tensor:
        """[..., V] -> [...] float32 in [0, 1]."""
        probs = _likeliest(logits, self.top_k).softmax(-1)
        size = probs.shape[-1]
        if size == 1:
            return probs[..., 0]
        if self.is_margin:
            first, second = probs.topk(2, dim=-1).values.unbind(-1)
            return first - second
        confidence = probs.amax(-1)
        return (confidence - 1 / size) * (size / (size - 1)) if self.normalized else confidence


def _likeliest(logits: Tensor, top_k: int | None) -> Tensor:
    logits = logits.float()
    if top_k is None or top_k >= logits.shape[-1]:
        return logits
    return logits.topk(top_k, dim=-1).values


def _check_top_k(top_k: int | None) -> None:
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
