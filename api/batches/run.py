"""One batch, from its file to its files: a window of jobs at a time, in the queue for batches.

Whoever works on it writes results into a part file of its own, and a line counts as done when its
result is there. So after a death another process goes on with what is missing, and a frozen one
that comes back writes where nobody reads any more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from redis.asyncio import Redis

from api.batches.file_desk import FileDesk
from api.batches.lines import (
    Entry,
    Line,
    LineChecker,
    count,
    now,
    of_end,
    of_job,
    of_refusal,
    read_entries,
    read_lines,
)
from api.endpoints import ENDPOINTS, prepare
from api.errors import ApiError, FileNotFoundHereError, JobNotFoundError, RetryLaterError
from api.gateway import GenerationGateway, reachable
from api.job_desk import JobDesk
from api.jobs import Sender
from api.metrics import ApiMetrics
from api.settings import ApiSettings
from worker.wire import batch_store, queueing
from worker.wire.batch_store import Batch, LineError
from worker.wire.queueing import DuplicateJobError, Terms

logger = logging.getLogger(__name__)

WINDOW = 256  # jobs of a batch in the queue or running
LEASE_S = 10.0
POLL_S = 0.25
PATIENCE_S = 2.0  # where the queue is full, or nobody serves the model
DISK_PATIENCE_S = 5.0
CANCEL_PATIENCE_S = 30.0
YIELD_LINES = 100  # checked without a look at other requests
LOOKS_AT_ONCE = 16
TIMED_OUT = 504


_CANCELLED = "batch_cancelled", "This request was cancelled before it was answered."
_EXPIRED = "batch_expired", "The batch expired before this request was answered."


class Desks(NamedTuple):
    """What a batch is worked on with."""

    redis: Redis
    gateway: GenerationGateway
    jobs: JobDesk
    files: FileDesk
    settings: ApiSettings
    metrics: ApiMetrics


class TakenOverError(Exception):
    """Another process works on this batch now."""


class BatchRun:
    """Works on a batch that was taken, as its `epoch`."""

    def __init__(self, desks: Desks, batch: Batch, epoch: int) -> None:
        self._desks = desks
        self._batch_id = batch.batch_id
        self._spec = batch.spec
        self._state = batch.state
        self._epoch = epoch
        self._is_cancelled = False  # until Redis says so at the first word of ours
        self._input = desks.files.disk.path(batch.spec.input_file_id)
        self._part = desks.files.disk.part(batch.batch_id, epoch)
        self._done: set[int] = set()
        self._running: dict[int, Line] = {}
        self._unwritten: list[Entry] = []
        self._said_at = 0.0

    async def run(self) -> None:
        """Work until the batch has ended; raises TakenOverError, ApiError or OSError."""
        if self._state.status == "validating":
            await self._validate()
        if self._state.status == "in_progress":
            await self._recall()
            await self._work()
            await self._note_the_rest()
            await self._enter("finalizing")
        if self._state.status == "finalizing":
            await self._finalize()

    async def give_back(self) -> None:
        """Let another process have it at once."""
        await batch_store.update(
            self._desks.redis, self._batch_id, self._epoch, self._state, lease_s=0.0
        )

    # Each status.

    async def _validate(self) -> None:
        checker = LineChecker(self._spec.endpoint, self._desks.settings.max_body_bytes)
        try:
            await self._desks.files.find(self._spec.input_file_id, self._spec.tenant)
            with self._input.open("rb") as file:
                for number, text in enumerate(file, 1):
                    checker.check(number, text)
                    if checker.is_hopeless:
                        break
                    if number % YIELD_LINES == 0:
                        await self._say_when_due()
                        await asyncio.sleep(0)
            self._state.errors = checker.end()
        except (FileNotFoundHereError, FileNotFoundError):
            missing = LineError(code="file_not_found", message="The input file is gone.")
            self._state.errors = [missing]
        self._state.total = checker.num_lines
        await self._enter("failed" if self._state.errors else "in_progress")

    async def _recall(self) -> None:
        """Count what was done before, by whomever."""
        state = self._state
        state.completed = state.failed = 0
        state.num_input_tokens = state.num_cached_tokens = state.num_output_tokens = 0
        parts = self._desks.files.disk.parts(self._batch_id)
        for entry in await asyncio.to_thread(lambda: list(read_entries(parts))):
            self._done.add(entry.number)
            count(state, entry)

    async def _work(self) -> None:
        waiting = self._lines_to_do()
        while not self._must_end:
            is_all = await self._fill(waiting)
            has_news = await self._collect()
            if is_all and not self._running and not self._unwritten:
                return
            if not has_news:
                await asyncio.sleep(POLL_S)
            await self._say_when_due()

    async def _note_the_rest(self) -> None:
        """Take what runs off the queue, and say of each line without an answer why."""
        if not self._must_end:
            return
        for number in list(self._running):
            await reachable(queueing.cancel(self._desks.redis, self._name(number)))
        until = time.monotonic() + CANCEL_PATIENCE_S
        while self._running and time.monotonic() < until:
            if not await self._collect():
                await asyncio.sleep(POLL_S)
            await self._say_when_due()
        for number, line in self._lines_to_do():
            self._note(of_end(number, self._name(number), line, *self._why_it_ended))
        while self._unwritten:
            await self._write()
            await self._say_when_due()

    async def _finalize(self) -> None:
        """Put the parts together into the files that the client gets."""
        parts = self._desks.files.disk.parts(self._batch_id)
        state = self._state
        for is_good in (True, False):
            name = "output" if is_good else "error"
            has_any = state.completed if is_good else state.failed
            if has_any:
                record = await self._desks.files.keep(
                    _chosen(parts, is_good),
                    self._spec.tenant,
                    f"{self._batch_id}_{name}.jsonl",
                    "batch_output",
                    self._spec.output_ttl_s,
                )
                setattr(state, f"{name}_file_id", record.file_id)
        end = "cancelled" if self._is_cancelled else "expired" if self._is_late else "completed"
        await self._enter(end)
        await asyncio.to_thread(self._desks.files.disk.drop_parts, self._batch_id)

    # Lines and their jobs.

    def _lines_to_do(self) -> Iterator[tuple[int, Line]]:
        for number, line in read_lines(self._input):
            if number not in self._done and number not in self._running:
                yield number, line

    async def _fill(self, waiting: Iterator[tuple[int, Line]]) -> bool:
        """Enqueue lines until the window is full; say whether there are none left."""
        while len(self._running) < WINDOW:
            number, line = next(waiting, (0, None))
            if line is None:
                return True
            while not await self._enqueue(number, line):
                await asyncio.sleep(PATIENCE_S)
                await self._collect()
                await self._say_when_due()
                if self._must_end:
                    return False
        return False

    async def _enqueue(self, number: int, line: Line) -> bool:
        """Make a line's job; False where it must be tried again later."""
        name = self._name(number)
        time_left_s = max(1.0, self._spec.expires_at - time.time())
        sender = Sender("", self._spec.tenant, time_left_s)
        gateway = self._desks.gateway
        try:
            prepared = await prepare(
                ENDPOINTS[line.url], bytes(line.body), "application/json", sender, gateway
            )
            job = msgspec.structs.replace(prepared.job, job_id=name, stream=False)
            terms = Terms(outlives_client=True, record=prepared.record)
            await gateway.enqueue(job, "batch", terms)
        except DuplicateJobError:
            pass  # made before, by whoever worked on this batch
        except RetryLaterError:
            return False
        except ApiError as error:
            self._note(of_refusal(number, name, line, error))
            return True
        self._running[number] = line
        return True

    async def _collect(self) -> bool:
        """Take the answers of the jobs that have ended; say whether there were any."""
        numbers = list(self._running)
        names = [self._name(number) for number in numbers]
        has_ended = await reachable(batch_store.have_ended(self._desks.redis, names))
        ended = [number for number, is_over in zip(numbers, has_ended, strict=True) if is_over]
        for start in range(0, len(ended), LOOKS_AT_ONCE):
            some = ended[start : start + LOOKS_AT_ONCE]
            for entry in await asyncio.gather(*(self._entry_of(number) for number in some)):
                self._note(entry)
        await self._write()
        return bool(ended)

    async def _entry_of(self, number: int) -> Entry:
        name, line = self._name(number), self._running[number]
        try:
            job = await self._desks.jobs.look(name, self._spec.tenant)
        except JobNotFoundError as error:
            return of_refusal(number, name, line, error)
        if job.status == "canceled":
            why = self._why_it_ended if self._must_end else _CANCELLED
            return of_end(number, name, line, *why)
        # A job's time is its batch's.
        is_late = job.response is not None and job.response.status_code == TIMED_OUT
        if job.status == "expired" or is_late:
            return of_end(number, name, line, *self._why_it_ended)
        return of_job(number, line, job)

    def _note(self, entry: Entry) -> None:
        self._running.pop(entry.number, None)
        self._done.add(entry.number)
        self._unwritten.append(entry)

    async def _write(self) -> None:
        """Write what was noted; where the disk refuses, keep it and wait a while."""
        if not self._unwritten:
            return
        try:
            await asyncio.to_thread(_append, self._part, self._unwritten)
        except OSError as error:
            logger.warning("batch %s: the disk refuses: %s", self._batch_id, error)
            await asyncio.sleep(DISK_PATIENCE_S)
            return
        for entry in self._unwritten:
            count(self._state, entry)
            self._desks.metrics.count_line(entry.is_good)
        self._unwritten = []

    # How far it is.

    @property
    def _is_late(self) -> bool:
        return now() >= self._spec.expires_at

    @property
    def _must_end(self) -> bool:
        return self._is_cancelled or self._is_late

    @property
    def _why_it_ended(self) -> tuple[str, str]:
        return _CANCELLED if self._is_cancelled else _EXPIRED

    async def _enter(self, status: str) -> None:
        self._state.status = status
        self._state.stamps[status] = now()
        await self._say(is_over=status in ("failed", "completed", "expired", "cancelled"))

    async def _say_when_due(self) -> None:
        if time.monotonic() > self._said_at + LEASE_S / 5:
            await self._say()

    async def _say(self, *, is_over: bool = False) -> None:
        standing = await reachable(
            batch_store.update(
                self._desks.redis,
                self._batch_id,
                self._epoch,
                self._state,
                LEASE_S,
                is_over=is_over,
            )
        )
        if not standing.is_ours:
            raise TakenOverError(self._batch_id)
        if standing.is_cancelled and not self._is_cancelled:
            self._is_cancelled = True
            self._state.stamps.setdefault("cancelling", now())
        self._said_at = time.monotonic()

    def _name(self, number: int) -> str:
        return f"{self._batch_id}-{number}"


def _append(part: Path, entries: list[Entry]) -> None:
    """Write entries whole: what a failed try left behind is cut off first."""
    with part.open("ab") as file:
        start = file.tell()
        try:
            file.write(b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries))
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            file.truncate(start)
            raise


def _chosen(parts: list[Path], is_good: bool) -> Iterator[bytes]:
    for entry in read_entries(parts):
        if entry.is_good is is_good:
            yield bytes(entry.line) + b"\n"
