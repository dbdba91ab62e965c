"""What a step says of jobs, and a worker's job with what it has said that is not written yet."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from msgspec import Raw

from worker.wire import codec, rq_hash
from worker.wire.messages import Accepted, Delta, Failed, Finished, Rejected

LOG_EVERY = 8
"""Deltas of a job that nobody streams are written at least this many at a time."""

KEPT_S = 5.0
"""How long written deltas are kept: a server that crashes may forget its last second or two."""


@dataclass(frozen=True)
class Ending:
    """The end of a job. A `Rejected` job ends as `failed`."""

    job_id: str
    status: Literal["finished", "failed", "stopped", "canceled"]
    event: Finished | Failed | Rejected
    result: bytes | None = None  # kept as RQ's return value
    exc_info: str | None = None  # shown by RQ's tools; holds no prompt


@dataclass
class StepRecord:
    """What one step has to say; of each job first its answer, then its deltas, then its ending."""

    answers: list[Accepted] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)


@dataclass(slots=True)
class HeldJob:
    """A job of ours, with what it has said that is not written yet."""

    execution_id: str
    stream: bool
    next_index: int = 0
    is_first: bool = True  # nothing is written yet, so the log has no TTL yet
    answer: Raw | None = None
    unwritten: list[Delta] = field(default_factory=list)
    num_entries: int = 0  # of the log, as it must be
    # What is written, and when: side by side, for pairs are work for the garbage collector.
    recent: deque[Delta] = field(default_factory=deque)
    recent_at: deque[float] = field(default_factory=deque)
    ending: dict[str, object] | None = None

    def take(self, item: Accepted | Delta | Ending) -> None:
        """Keep a word of the job; a step that is emitted again brings what is here already."""
        if isinstance(item, Delta):
            if item.index >= self.next_index:
                self.unwritten.append(item)
                self.next_index = item.index + 1
        elif isinstance(item, Accepted):
            self.answer = codec.for_lua(item)
        else:
            self.ending = _packed(item)

    @property
    def is_due(self) -> bool:
        """Say whether it must be written now; where nobody streams, the answer alone need not."""
        if self.ending is not None:
            return True
        if self.stream:
            return self.answer is not None or bool(self.unwritten)
        return len(self.unwritten) >= LOG_EVERY

    def note_written(self, now: float) -> None:
        """Note that all is written, at the monotonic time `now`."""
        self.answer = None
        if self.unwritten:
            self.is_first = False
            self.num_entries += 1
            self.recent += self.unwritten
            self.recent_at += [now] * len(self.unwritten)
            self.unwritten.clear()
            while self.recent and self.recent_at[0] < now - KEPT_S:
                self.recent.popleft()
                self.recent_at.popleft()

    def rewind(self, num_entries: int, next_index: int) -> bool:
        """Take back what a crashed server has forgotten, to be written once more.

        Its log has `num_entries` entries and goes on at `next_index`. False: what is missing was
        written longer ago than is kept here.
        """
        missing = [delta for delta in self.recent if delta.index >= next_index]
        if not missing or missing[0].index != next_index:
            return False
        self.recent.clear()
        self.recent_at.clear()
        self.unwritten = missing + self.unwritten
        self.num_entries = num_entries
        return True

    def record(self, job_id: str) -> tuple[object, ...]:
        """Return what `emit.lua` reads of one job."""
        deltas = b"".join([codec.encode(delta) for delta in self.unwritten])
        return (
            job_id,
            self.execution_id,
            self.is_first,
            f"{self.next_index}-0",
            len(self.unwritten),
            codec.for_lua(deltas),
            self.answer,
            self.ending,
            self.num_entries,
        )


def _packed(ending: Ending) -> dict[str, object]:
    return {
        "status": ending.status,
        "event": codec.for_lua(ending.event),
        "result": rq_hash.return_value(ending.result),
        "exc": rq_hash.exc_string(ending.exc_info) if ending.exc_info is not None else None,
    }
