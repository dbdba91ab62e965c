"""Many settings in short pieces: those far behind leave, the others get the time."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from benchmarks.rounds import Sample

Piece = Callable[[int], Mapping[str, float]]
"""Does the piece of this number, -1 to warm up; returns `num_tokens` and `seconds`."""

FAR_BEHIND = 0.9
"""Of the fastest: below it a setting does not stand for the best any more."""


@dataclass(frozen=True)
class RaceRules:
    """A round of a case is the sum of its pieces, which are spread over the round."""

    num_rounds: int
    num_pieces: int
    stays: Collection[str] = ()
    """Cases that are measured to the end however slow they are."""

    @property
    def num_open_rounds(self) -> int:
        """The first rounds, which everybody takes part in."""
        return max(1, self.num_rounds // 3)


def race(cases: Mapping[str, Piece], rules: RaceRules) -> dict[str, list[Sample]]:
    """Samples with `tokens_s`, one a round; of those that left fewer than of the others."""
    for case in cases.values():
        case(-1)
    samples: dict[str, list[Sample]] = {name: [] for name in cases}
    running = list(cases)
    for number in range(rules.num_rounds):
        if number == rules.num_open_rounds:
            running = _in_front(samples, rules.stays)
        for name, sums in _round(cases, running, number, rules.num_pieces).items():
            samples[name].append({**sums, "tokens_s": sums["num_tokens"] / sums["seconds"]})
        sys.stderr.write(f"  round {number + 1}/{rules.num_rounds}  {', '.join(running)}\n")
    return samples


def rate(samples: Sequence[Sample]) -> float:
    """Tokens a second over all rounds together."""
    return sum(own["num_tokens"] for own in samples) / sum(own["seconds"] for own in samples)


def _round(
    cases: Mapping[str, Piece], running: Sequence[str], number: int, num_pieces: int
) -> dict[str, Counter[str]]:
    sums: dict[str, Counter[str]] = {name: Counter() for name in running}
    order = Random(number)
    for index in range(number * num_pieces, (number + 1) * num_pieces):
        # Shuffled: who always followed its own like would find its data still in the caches.
        for name in order.sample(running, len(running)):
            sums[name].update(cases[name](index))
    return sums


def _in_front(samples: Mapping[str, list[Sample]], stays: Collection[str]) -> list[str]:
    rates = {name: rate(own) for name, own in samples.items()}
    limit = FAR_BEHIND * max(rates.values())
    return [name for name, own in rates.items() if own >= limit or name in stays]
