"""Fair repetition: all cases in turn, A B A B, so that a busy minute falls on each of them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from statistics import median
from typing import TypeVar

T = TypeVar("T")

Sample = Mapping[str, float]
Case = Callable[[int], Sample]
"""Measures once; is given the round's number, and -1 to warm up."""


def interleave(cases: Mapping[str, Case], rounds: int) -> dict[str, list[Sample]]:
    """Warm every case up once, then measure all of them in each round."""
    for case in cases.values():
        case(-1)
    samples: dict[str, list[Sample]] = {name: [] for name in cases}
    for number in range(rounds):
        for name, case in cases.items():
            samples[name].append(case(number))
            sys.stderr.write(f"  round {number + 1}/{rounds}  {name}\n")
    return samples


def middle(samples: Sequence[Sample], key: str) -> float:
    """The median over the rounds."""
    return median(sample[key] for sample in samples)


def ratio(samples: Sequence[Sample], base: Sequence[Sample], key: str) -> float:
    """The median of the rounds' own ratios: what slows a whole round cancels out."""
    return median(paired(samples, base, key))


def paired(samples: Sequence[Sample], base: Sequence[Sample], key: str) -> list[float]:
    """Each round's own ratio."""
    return [ours[key] / theirs[key] for ours, theirs in zip(samples, base, strict=True)]


def spread(
    rounds: Sequence[T], figure: Callable[[Sequence[T]], float], share: float = 0.9
) -> tuple[float, float]:
    """Between which bounds this share of figures falls when the rounds are drawn anew.

    The percentile bootstrap (Efron 1979); the same for the same rounds.
    """
    rng = Random(0)
    found = [figure(rng.choices(rounds, k=len(rounds))) for _ in range(1000)]
    outside = (1 - share) / 2
    return percentile(found, outside), percentile(found, 1 - outside)


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    if not ordered:
        return float("nan")
    # The small subtrahend keeps 0.95 * 20, which is not quite 19 in binary, from being rounded up.
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]
