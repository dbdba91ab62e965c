"""One job's answer as it comes in: acceptance, deltas in order and without a hole, the end."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable

from api.bell import Bell
from api.errors import ApiError, GenerationFailedError
from worker.wire.job_record import JobRecord
from worker.wire.messages import (
    Accepted,
    Delta,
    Event,
    Failed,
    Finished,
    GenerateJob,
    Rejected,
)

# A crash of Redis has taken the log's end and the worker that knew it. The answer is made once
# more, and while its tokens are the same, they need not come in the same deltas.
_TORN = "The queue has lost a part of this answer; ask again."


def output_lost() -> GenerationFailedError:
    return GenerationFailedError(500, _TORN, code="output_lost")


class DeltaSequencer:
    """Puts deltas into order by their index: doubles go, early ones wait for those before them."""

    def __init__(self) -> None:
        self.next_index = 0
        self.is_torn = False  # what comes now does not go on from what has come before
        self._seen = array("q")  # a mark for each delta that had its turn
        self._early: dict[int, Delta] = {}

    @property
    def has_gap(self) -> bool:
        return bool(self._early)

    def push(self, delta: Delta) -> list[Delta]:
        """Take one delta; return those whose turn has come."""
        if delta.index == self.next_index and not self._early:  # nearly always
            self._take(delta)
            return [delta]
        if delta.index < self.next_index:
            self.is_torn |= self._seen[delta.index] != _mark(delta)
            return []
        self._early[delta.index] = delta
        ready = []
        while (following := self._early.pop(self.next_index, None)) is not None:
            ready.append(following)
            self._take(following)
        return ready

    def _take(self, delta: Delta) -> None:
        self.next_index += 1
        self._seen.append(_mark(delta))


class Generation:
    """The reader's end of a job. Whoever holds it must `close` it, whatever happens.

    The gateway fills it with `put`, from the reply channel and from the job's log alike.
    """

    def __init__(
        self,
        job: GenerateJob,
        on_close: Callable[[Generation], None],
        record: JobRecord | None = None,
        *,
        outlives_reader: bool = False,
    ) -> None:
        self.job = job
        self.record = record or JobRecord()
        self.outlives_reader = outlives_reader  # the job goes on when this reader goes
        self.is_joined = False  # the job was there before; set by the gateway
        self.wait_s: float | None = None  # until a worker takes it, as last estimated
        self.position = 0  # jobs before this one, as last heard while it was queued
        self.is_enqueued = False  # set by the gateway: until then Redis need not know the job
        self.is_accepted = False
        self.num_prompt_tokens: int | None = None  # as far as the worker's word has come
        self.started = self.last_event = time.monotonic()
        self._on_close = on_close
        self._is_closed = False
        self._is_given_up = False
        self._sequencer = DeltaSequencer()
        self._ready: list[Delta | Finished] = []
        self._finished: Finished | None = None
        self._error: ApiError | None = None
        self._bell = Bell()

    @property
    def job_id(self) -> str:
        return self.job.job_id

    @property
    def next_index(self) -> int:
        return self._sequencer.next_index

    @property
    def has_ended(self) -> bool:
        """Nothing more can come; what is ready may still have to be taken."""
        return self._error is not None or self._is_complete

    @property
    def may_still_run(self) -> bool:
        """Closing it now must cancel the job."""
        return not self.outlives_reader and (not self.has_ended or self._is_given_up)

    @property
    def has_gap(self) -> bool:
        """A delta is missing that the log must have."""
        misses_last = self._finished is not None and not self._is_complete
        return (misses_last or self._sequencer.has_gap) and not self.has_ended

    @property
    def _is_complete(self) -> bool:
        return self._finished is not None and self.next_index >= self._finished.num_deltas

    def put(self, event: Event) -> None:
        """Take an event, however often it comes and in whatever order."""
        if self.has_ended:
            return
        self.last_event = time.monotonic()
        match event:
            case Delta():
                self.is_accepted = True  # even where the word of it was lost
                self._ready += self._sequencer.push(event)
                if self._sequencer.is_torn:
                    self.give_up(output_lost())
            case Accepted():
                self.is_accepted = True
                self.num_prompt_tokens = event.num_prompt_tokens
            case Finished():
                self.is_accepted = True
                self._finished = event
            case Rejected():
                self._error = GenerationFailedError(
                    event.status, event.message, param=event.param, code=event.code
                )
            case Failed():
                self._error = GenerationFailedError(event.status, event.message, code=event.code)
        if self._finished is not None and self._is_complete:
            self._ready.append(self._finished)
        self._bell.ring()

    def give_up(self, error: ApiError) -> None:
        """End the reading by our own decision, while the job may go on."""
        if not self.has_ended:
            self._error = error
            self._is_given_up = True
            self._bell.ring()

    async def wait_accepted(self, timeout_s: float | None = None) -> bool:
        """Wait for the worker's word; False if it has not come in time. Raises what it refused."""
        self._bell.set_patience(timeout_s)
        while not self.is_accepted and self._error is None:
            if not await self._bell.wait():
                return False
        if self._error is not None and not self._ready:
            raise self._error
        return True

    async def take(self, timeout_s: float | None = None) -> list[Delta | Finished]:
        """Return what has come, `Finished` last; nothing after a silence of `timeout_s`.

        Raises the job's error once all that came before it is taken.
        """
        if not self._ready and self._error is None:
            self._bell.set_patience(timeout_s)
            while not self._ready and self._error is None:
                if not await self._bell.wait():
                    return []
        ready, self._ready = self._ready, []
        if not ready and self._error is not None:
            raise self._error
        return ready

    def close(self) -> None:
        """Say that nobody reads on: a job that has not ended is cancelled. May be called twice."""
        if not self._is_closed:
            self._is_closed = True
            self._bell.close()
            self._on_close(self)


def _mark(delta: Delta) -> int:
    return hash((delta.choice, *delta.token_ids))
