"""Collects all that jobs have to say into one record a step, and keeps it while Redis is away."""

from __future__ import annotations

from collections.abc import Iterable

from worker.held_job import Ending, StepRecord
from worker.wire.messages import Accepted, Delta

# What a delta weighs beside its text and tokens, in bytes; a guess that errs on the high side.
DELTA_OVERHEAD = 200
TOKEN_BYTES = 8
LOGPROB_BYTES = 400


class Publisher:
    """Two records: the one on its way, sent again unchanged until it has arrived, and the next.

    A record whose answer was lost may have arrived; only the very same one can be told from it.
    """

    def __init__(self) -> None:
        self._next = StepRecord()
        self._unsent: StepRecord | None = None
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """About how much memory the collected output takes."""
        return self._num_bytes

    @property
    def is_empty(self) -> bool:
        return self._unsent is None and not _says_anything(self._next)

    def answer(self, accepted: Accepted) -> None:
        self._next.answers.append(accepted)

    def say(self, deltas: Iterable[Delta]) -> None:
        for delta in deltas:
            self._next.deltas.append(delta)
            self._num_bytes += _weight(delta)

    def end(self, ending: Ending) -> None:
        self._next.endings.append(ending)

    def record_to_send(self) -> StepRecord | None:
        """Return the record on its way, or put the collected one there; None: nothing to say."""
        if self._unsent is None and _says_anything(self._next):
            self._unsent, self._next = self._next, StepRecord()
        return self._unsent

    def arrived(self) -> list[Ending]:
        """Forget the record that was on its way; return the endings that Redis now knows."""
        assert self._unsent is not None
        sent, self._unsent = self._unsent, None
        self._num_bytes = sum(_weight(delta) for delta in self._next.deltas)
        return sent.endings

    def forget(self, job_ids: set[str]) -> None:
        """Drop what is collected for jobs that are no longer ours."""
        if not job_ids:
            return
        self._next = StepRecord(
            [answer for answer in self._next.answers if answer.job_id not in job_ids],
            [delta for delta in self._next.deltas if delta.job_id not in job_ids],
            [ending for ending in self._next.endings if ending.job_id not in job_ids],
        )


def _says_anything(record: StepRecord) -> bool:
    return bool(record.answers or record.deltas or record.endings)


def _weight(delta: Delta) -> int:
    num_logprobs = len(delta.logprobs or ())
    tokens = len(delta.token_ids) * TOKEN_BYTES
    return DELTA_OVERHEAD + len(delta.text) + tokens + num_logprobs * LOGPROB_BYTES
