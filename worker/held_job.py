"""What a step says of jobs, and a worker's job with what it has said that is not written yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from msgspec import Raw

from worker.wire import codec, rq_hash
from worker.wire.messages import Accepted, Delta, Failed, Finished, Rejected

LOG_EVERY = 8
"""Deltas of a job that nobody streams are written at least this many at a time."""


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

    def note_written(self) -> None:
        self.is_first = self.is_first and not self.unwritten
        self.answer = None
        self.unwritten.clear()

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
        )


def _packed(ending: Ending) -> dict[str, object]:
    return {
        "status": ending.status,
        "event": codec.for_lua(ending.event),
        "result": rq_hash.return_value(ending.result),
        "exc": rq_hash.exc_string(ending.exc_info) if ending.exc_info is not None else None,
    }
