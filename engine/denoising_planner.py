"""Whether to denoise drafts once more before they are verified, from measured costs and luck.

Another step pays where its gain in accepted tokens is worth more than the step costs, a token being
worth what it costs at the rate that verifying now would reach. Under the shared-noise rule no
choice made here can change any output.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from itertools import accumulate
from operator import mul

_EVIDENCE = 8.0  # tokens' worth of belief in the first guesses
_FADE = 0.998
_SURE, _VERIFIED, _DENOISED = 0.8, 0.5, 0.6  # first guesses; one more step is worth trying


class DenoisingModel:
    """Probability that a draft token stands, given that all before it do, by what it has seen.

    Three kinds a step: revealed by then; masked then and verified as it was drawn; masked then and
    drawn again. Comparing the last two, not drafts of few and of many steps, keeps easy drafts,
    which end early, from speaking for the hard ones.
    """

    def __init__(self, max_steps: int) -> None:
        self._sure = _Share(_SURE)
        self._verified = [_Share(_VERIFIED) for _ in range(max_steps + 1)]
        self._denoised = [_Share(_DENOISED) for _ in range(max_steps + 1)]

    def survivals(
        self, is_masked: Seq[bool], num_steps: int, *, once_more: bool = False
    ) -> list[float]:
        """a[j] that tokens 0 to j all stand: verified after `num_steps`, or after one more.

        `is_masked` are the positions that are not yet revealed after `num_steps`.
        """
        masked = (self._denoised if once_more else self._verified)[num_steps]
        chances = (masked.value if mask else self._sure.value for mask in is_masked)
        return list(accumulate(chances, mul))

    def update(self, masked_after: Seq[Seq[bool]], num_verified: int, num_accepted: int) -> None:
        """Learn from a verified draft; masked_after[s - 1] is `is_masked` after step s."""
        for position in range(min(num_accepted + 1, num_verified)):
            stood = position < num_accepted
            num_steps = len(masked_after)
            if not masked_after[-1][position]:
                self._sure.update(stood)
            for step, is_masked in enumerate(masked_after, start=1):
                if is_masked[position]:
                    kind = self._verified if step == num_steps else self._denoised
                    kind[step].update(stood)


class _Share:
    """How often something happened; old evidence fades."""

    def __init__(self, guess: float) -> None:
        self._tried, self._happened = _EVIDENCE, _EVIDENCE * guess

    @property
    def value(self) -> float:
        return self._happened / self._tried

    def update(self, happened: bool) -> None:
        self._tried = self._tried * _FADE + 1.0
        self._happened = self._happened * _FADE + happened


def plan_denoising(
    gains: Seq[float], committed: float, spent_s: float, draft_cost: Callable[[float], float]
) -> set[int]:
    """Which drafts to denoise once more, by index: those that raise committed tokens a second most.

    gains: accepted tokens that one more step is expected to bring each draft; committed: expected
    of the whole step if all are verified now, at `spent_s` seconds, verifying included;
    draft_cost: seconds of a forward by the number of drafts in it.
    """
    best_rate, best_count = committed / spent_s, 0
    order = sorted(range(len(gains)), key=lambda index: -gains[index])
    for count, index in enumerate(order, start=1):
        committed += gains[index]
        rate = committed / (spent_s + draft_cost(count))
        if rate > best_rate:
            best_rate, best_count = rate, count
    return set(order[:best_count])
