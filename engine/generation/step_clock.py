"""How long each step takes, from its beginning to that of the next one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from engine.generation.rounds import DraftRounds
from engine.generation.strategy import StepTiming
from engine.request.sequence import Sequence


@dataclass(frozen=True)
class Schedule:
    """The sequences of one step: some decode, some read the next chunk of their prompt."""

    decoding: list[Sequence] = field(default_factory=list)
    prefills: list[tuple[Sequence, int]] = field(default_factory=list)
    """With the number of tokens to read."""


class StepClock:
    """Times whole steps: forwards, and all that is done between two of them."""

    def __init__(self) -> None:
        self.modes: set[str] = set()
        """Of the sequences that decoded in the step before the one under way."""
        self._started = 0.0
        self._noted: tuple[Schedule, DraftRounds] | None = None  # of the step under way
        self._sequences: set[str] = set()

    def start(self, schedule: Schedule) -> StepTiming | None:
        """A step begins; returns the timing of the last one.

        None where none of its sequences is left: the engine may have waited for work since.
        """
        now = time.perf_counter()
        seconds, self._started = now - self._started, now
        noted, self._noted = self._noted, None
        ids = {seq.sequence_id for seq in schedule.decoding}
        if schedule.prefills:
            ids.update(seq.sequence_id for seq, _ in schedule.prefills)
        are_others = self._sequences.isdisjoint(ids)
        self._sequences = ids
        return None if noted is None or are_others else _timing(*noted, seconds)

    def note(self, schedule: Schedule, rounds: DraftRounds) -> None:
        """What the step under way consists of."""
        self.modes = {seq.mode for seq in schedule.decoding}
        self._noted = schedule, rounds


def _timing(schedule: Schedule, rounds: DraftRounds, seconds: float) -> StepTiming:
    return StepTiming(
        rounds.drafts,
        rounds.denoises,
        num_sequences=len(schedule.decoding),
        num_rows=sum([len(rows.token_ids) for rows in rounds.verifier_rows]),
        num_prefill_rows=sum([count for _, count in schedule.prefills]),
        seconds=seconds,
    )
