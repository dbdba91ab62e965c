"""How likely draft tokens are to be accepted, learnt from what became of those before them."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import accumulate
from operator import mul

_LUCK_PRIOR = 4.0  # tokens' worth of belief that a sequence is like the others
_LUCK_REST = 0.8
_LATELY_FADE, _LATELY_ENOUGH = 0.98, 20.0
_CHANGED = 4.5
"""Standard deviations by which the last fifty tries differ from all where something has changed."""
_TRUST_FADE = 0.9999
_TRUST_PRIOR = 4.0  # squared tokens' worth of belief that luck lasts
_CREDIT_PRIOR, _CREDIT_MEMORY, _LEAST_PROMISE = 100.0, 2000.0, 0.5  # tokens


class AcceptanceModel:
    """Probability that draft position j is accepted, given that all before it were.

    One estimate a position over all sequences, and one factor a sequence: some texts are simply
    easier than others. Old evidence fades, so a change of traffic is followed.
    """

    def __init__(self, num_positions: int, *, prior: float = 0.6, fade: float = 0.9993) -> None:
        self._tried = [4.0] * num_positions
        self._accepted = [4.0 * prior] * num_positions
        self._fade = fade
        self._lately = [(0.0, 0.0)] * num_positions  # tried, accepted
        self._luck: dict[str, tuple[float, float]] = {}  # accepted, expected to be accepted
        self._told, self._held = _TRUST_PRIOR, _TRUST_PRIOR

    def conditional(self, position: int) -> float:
        return self._accepted[position] / self._tried[position]

    def chances(self, sequence_id: str, length: int, hope: float = 0.0) -> list[float]:
        """`conditional` of each position, by the luck of one sequence; each in [0, 1)."""
        accepted, expected = self._luck.get(sequence_id, (0.0, 0.0))
        luck = (accepted + _LUCK_PRIOR + hope) / (expected + _LUCK_PRIOR)
        factor = 1.0 + self._trust * (luck - 1.0)
        shares = zip(self._accepted[:length], self._tried, strict=False)
        return [min(accepted / tried * factor, 0.98) for accepted, tried in shares]

    def doubts(self, length: int) -> list[float]:
        """Standard deviations of the first `conditional`s."""
        return [
            (max(share * (1.0 - share), 0.01) / tried) ** 0.5
            for share, tried in ((self.conditional(j), self._tried[j]) for j in range(length))
        ]

    @property
    def _trust(self) -> float:
        """How far luck so far foretells luck to come: 0 where all sequences are alike."""
        return min(max(self._held / self._told, 0.0), 1.0)

    def _factor(self, sequence_id: str) -> float:
        accepted, expected = self._luck.get(sequence_id, (0.0, 0.0))
        return (accepted + _LUCK_PRIOR) / (expected + _LUCK_PRIOR)

    def survivals(self, sequence_id: str, length: int, hope: float = 0.0) -> list[float]:
        """a[0], ..., a[length - 1] of one sequence: falling, each in [0, 1).

        `hope` tokens are taken for accepted that were not: a new sequence is then tried sooner.
        """
        return list(accumulate(self.chances(sequence_id, length, hope), mul))

    def update(
        self, sequence_id: str, num_drafted: int, num_accepted: int, cut_off: Seq[float] = ()
    ) -> None:
        """Learn from one verify step.

        `cut_off` are the chances of the tokens that were drafted after these but not verified.
        They count as far as they would have been tried: a draft is cut where it looks bad, and
        without them the deep positions would be judged by the good drafts alone.
        """
        fates = [1.0] * num_accepted + [0.0] * (num_drafted - num_accepted)
        tried, accepted, expected = 1.0, 0.0, 0.0
        for j, chance in enumerate((*fates, *cut_off)):
            if not tried:  # what stands behind a refused token says nothing
                break
            expected += tried * self.conditional(j)
            self._tried[j] = self._tried[j] * self._fade**tried + tried
            self._accepted[j] = self._accepted[j] * self._fade**tried + tried * chance
            self._follow(j, tried, chance)
            tried *= chance
            accepted += tried
        foretold = expected * (self._factor(sequence_id) - 1.0)
        self._told = self._told * _TRUST_FADE + foretold * foretold
        self._held = self._held * _TRUST_FADE + foretold * (accepted - expected)
        old_accepted, old_expected = self._luck.get(sequence_id, (0.0, 0.0))
        self._luck[sequence_id] = (
            old_accepted * 0.9 + accepted,
            old_expected * 0.9 + expected,
        )

    def _follow(self, position: int, tried: float, chance: float) -> None:
        """Forget what was long ago where it has nothing to do any more with what is now."""
        num, accepted = self._lately[position]
        num = num * _LATELY_FADE**tried + tried
        accepted = accepted * _LATELY_FADE**tried + tried * chance
        self._lately[position] = (num, accepted)
        if num < _LATELY_ENOUGH:
            return
        share = self.conditional(position)
        variance = max(share * (1.0 - share), 0.02) / num
        if (accepted / num - share) ** 2 > _CHANGED**2 * variance:
            self._tried[position], self._accepted[position] = num, accepted

    def rest(self, sequence_id: str, num_steps: int = 1) -> None:
        """Steps without a draft: bad luck fades, or a sequence would never be tried again."""
        if sequence_id in self._luck:
            fade = _LUCK_REST**num_steps
            accepted, expected = self._luck[sequence_id]
            self._luck[sequence_id] = (accepted * fade, expected * fade)

    def rest_all(self, num_steps: int) -> None:
        """Steps in which nobody had a draft."""
        for sequence_id in self._luck:
            self.rest(sequence_id, num_steps)

    def forget(self, sequence_id: str) -> None:
        self._luck.pop(sequence_id, None)


class Credit:
    """How much of what the chosen drafts promise is kept.

    Who is drafted for is chosen by estimates, so those chosen are the overestimated ones as well.
    """

    def __init__(self) -> None:
        self._promised = self._kept = _CREDIT_PRIOR

    @property
    def share(self) -> float:
        return self._kept / self._promised

    def update(self, promised: float, num_accepted: int) -> None:
        """Of one step; both in draft tokens."""
        fade = 1.0 - min(max(promised, _LEAST_PROMISE) / _CREDIT_MEMORY, 1.0)
        self._promised = _CREDIT_PRIOR + (self._promised - _CREDIT_PRIOR) * fade + promised
        self._kept = _CREDIT_PRIOR + (self._kept - _CREDIT_PRIOR) * fade + num_accepted
