"""When a plan still holds for the next step: to plan for a large batch takes its time."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

_LONGEST_REST = 16
"""Steps that are like the one before, and not planned anew."""
_REST_BY_LEAD = 100.0
"""Such steps for all the rate that drafts would cost: the clearer that is, the longer it holds."""
_REST_BY_SIZE, _SHORTEST_REST, _LONGEST_SIZED_REST = 4, 2, 6
"""One such step for so many sequences: to plan for a large batch takes its time, and for a single
one a tenth of a short step."""
_RESTS_LIKE = 0.8
"""A batch is like another one if they have this share of the larger one's sequences in common."""


class Ask(NamedTuple):
    """A sequence that may be drafted for in this step."""

    sequence_id: str
    limit: int  # tokens, at most
    fixed_length: int | None = None  # what the client asked for, instead of the planner's choice
    needs_block: bool = True  # False: the draft is there already, and costs no forward
    is_dear: bool = False  # True: much must be read before it can be drafted for


class Rests:
    """Steps in which everybody gets what was last planned for him, without a thought."""

    def __init__(self) -> None:
        self._num_left = 0
        self._planned: dict[str, int] = {}

    def begin(self, lead: float, num_sequences: int, num_paid: int = 0) -> None:
        """`lead` is the share of the rate that drafts would cost, 0 where they pay.

        `num_paid`: after how many steps a plan costs no more than its share of their time.
        """
        self._num_left = max(
            min(max(int(lead * _REST_BY_LEAD), num_paid), _LONGEST_REST),
            min(max(num_sequences // _REST_BY_SIZE, _SHORTEST_REST), _LONGEST_SIZED_REST),
        )

    def spend(self) -> bool:
        """Take one such step; False where none is left."""
        if not self._num_left:
            return False
        self._num_left -= 1
        return True

    def end(self) -> None:
        self._num_left = 0

    def note(self, asks: Seq[Ask], lengths: Seq[int]) -> None:
        """What was planned."""
        self._planned = {ask.sequence_id: n for n, ask in zip(lengths, asks, strict=True)}

    def may_go_on(self, asks: Seq[Ask]) -> bool:
        """Whether this batch may have the last plan again."""
        if not self._num_left:
            return False
        if any(ask.fixed_length is not None or ask.is_dear for ask in asks):
            return False
        num_known = sum(ask.sequence_id in self._planned for ask in asks)
        return num_known >= max(len(asks), len(self._planned)) * _RESTS_LIKE

    def lengths(self, asks: Seq[Ask]) -> list[int]:
        """The last plan again; who is new gets what others got on average."""
        self._num_left -= 1
        usual = round(sum(self._planned.values()) / len(self._planned))
        return [min(self._planned.get(ask.sequence_id, usual), ask.limit) for ask in asks]
