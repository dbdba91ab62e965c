"""Whom a plan may choose to draft for, and with what hopes."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from engine.acceptance_model import AcceptanceModel
from engine.draft_planner import Candidate
from engine.plan_stints import Ask

_HOPE = 0.3
"""Tokens by which a lone sequence is thought luckier: of it alone there is something to learn."""
_READ_AFTER = 256
"""Plans without anybody to try drafts on after which a prompt is read for it."""


class Candidates:
    """Makes candidates of those that ask; who would have to read much first waits until it pays."""

    def __init__(self, acceptance: AcceptanceModel) -> None:
        self._acceptance = acceptance
        self._num_waits = 0
        self._pays = True
        """Whether drafts were last chosen where nothing had to be read for them; until they are,
        nobody's prompt is read to draft."""

    def note_choice(self, asks: Seq[Ask], lengths: Seq[int]) -> None:
        """What was chosen for them, and was no trial."""
        cheap = [
            length > 0
            for length, ask in zip(lengths, asks, strict=True)
            if ask.fixed_length is None and not ask.is_dear
        ]
        if cheap:
            self._pays = any(cheap)

    def of(self, asks: Seq[Ask]) -> list[Candidate]:
        """One for each of them, in this order."""
        is_held = [ask.is_dear and ask.fixed_length is None and not self._pays for ask in asks]
        reads = -1
        if any(is_held) and all(
            held or ask.fixed_length is not None for held, ask in zip(is_held, asks, strict=True)
        ):
            self._num_waits += 1
            reads = is_held.index(True) if self._num_waits % _READ_AFTER == 0 else -1
        hope = _HOPE / max(len(asks), 1) ** 2
        return [
            self._candidate(ask, ask.limit if index == reads else 0 if held else None, hope)
            for index, (ask, held) in enumerate(zip(asks, is_held, strict=True))
        ]

    def _candidate(self, ask: Ask, given_length: int | None, hope: float) -> Candidate:
        fixed_length = ask.fixed_length if given_length is None else given_length
        if not ask.needs_block:
            return Candidate((), fixed_length, needs_block=False)
        survivals = self._acceptance.survivals(ask.sequence_id, ask.limit, hope)
        return Candidate(survivals, fixed_length)
