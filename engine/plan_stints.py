"""Stints: steps in which everybody gets what was last planned for him, without a thought."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import NamedTuple

_SETTLING = {True: 1, False: 3}
"""Steps by whether they draft, after some that did not do the same, that are no measure: what the
others have driven out of the caches is read from memory again. Without drafts such a step of 16
sequences takes up to 1.6 times as long, with them one of a lone sequence 1.1 times."""
_LIKE = 0.5
"""A batch is like another one if they have this share of the larger one's sequences in common."""


class Ask(NamedTuple):
    """A sequence that may be drafted for in this step."""

    sequence_id: str
    limit: int  # tokens, at most
    fixed_length: int | None = None  # what the client asked for, instead of the planner's choice
    needs_block: bool = True  # False: the draft is there already, and costs no forward
    is_dear: bool = False  # True: much must be read before it can be drafted for

    @property
    def may_go_on(self) -> bool:
        """Whether the next step may ask nothing else for it."""
        return self.needs_block and not self.is_dear


AskOf = Callable[[int], Ask]
"""What is asked for the sequence with this number in the batch: dear, so made where needed."""


class Stint:
    """The plan that is followed, for whom, and for how long."""

    def __init__(self) -> None:
        self.drafts = False
        self.num_alike = 0
        """Steps that have gone by since nobody, or somebody, is drafted for."""
        self._num_left = 0
        self._ids: Seq[str] = ()
        self._lengths: Seq[int] = ()

    @property
    def is_settled(self) -> bool:
        """Whether the last step has cost what such steps cost one after the other."""
        return self.num_alike > _SETTLING[self.drafts]

    @property
    def has_ended(self) -> bool:
        return self._num_left <= 0

    def begin(self, asks: Seq[Ask], lengths: Seq[int], num_steps: int) -> None:
        """Hold these lengths for so many steps, this one included."""
        may_go_on = all(ask.may_go_on for ask in asks)
        self._ids = [ask.sequence_id for ask in asks] if may_go_on else ()
        self._lengths = lengths
        self._num_left = num_steps
        if any(lengths) != self.drafts:
            self.drafts, self.num_alike = not self.drafts, 0
        self._pass()

    def end(self) -> None:
        """The next step is to be planned anew."""
        self._num_left = 0

    def forget(self, sequence_id: str) -> None:
        """Whoever bears this name next is somebody new."""
        if sequence_id in self._ids:
            self._ids = ["" if name == sequence_id else name for name in self._ids]

    def keep_resting(self, ids: Seq[str], may_think: bool) -> bool:
        """Like `go_on`, where these very sequences go on without drafts."""
        if self.drafts or ids != self._ids or (may_think and self._num_left <= 0):
            return False
        self._num_left -= 1
        self.num_alike += 1
        return True

    def go_on(self, ids: Seq[str], ask: AskOf) -> Seq[int] | None:
        """The lengths of the step before, where this is a batch like that one; else None.

        Who is new gets what others got on average. Those who have less left than that, less.
        """
        if not self._ids or (ids != self._ids and not self._admit(ids, ask)):
            return None
        self._pass()
        if not self.drafts:
            return self._lengths
        return [min(n, ask(i).limit) if n else 0 for i, n in enumerate(self._lengths)]

    def _pass(self) -> None:
        self._num_left -= 1
        self.num_alike += 1

    def _admit(self, ids: Seq[str], ask: AskOf) -> bool:
        """Let sequences come and go, if they are few and leave everything to the planner."""
        planned = dict(zip(self._ids, self._lengths, strict=True))
        new = {index: ask(index) for index, name in enumerate(ids) if name not in planned}
        if len(ids) - len(new) < max(len(ids), len(planned)) * _LIKE:
            return False
        if not all(one.may_go_on and one.fixed_length is None for one in new.values()):
            return False
        usual = round(sum(self._lengths) / len(self._lengths))
        self._lengths = [planned.get(name, usual) for name in ids]
        self._ids = ids
        return True
