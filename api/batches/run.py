"""One batch, from its file to its files: a window of jobs at a time, in the queue for batches.

Whoever works on it writes results into a part file of its own, and a line counts as done when its
result is there. So after a death another process goes on with what is missing, and a frozen one
that comes back writes where nobody reads any more.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Coroutine, Iterator
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import msgspec
from redis.asyncio import Redis

from api.batches import hold
from api.batches.file_desk import FileDesk
from api.batches.hold import CANCELLED, Hold
from api.batches.lines import Line, LineChecker, read_lines
from api.batches.results import (
    Entry,
    append_entries,
    chosen_lines,
    count,
    count_all,
    of_end,
    of_job,
    of_refusal,
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
POLL_S = 0.25
PATIENCE_S = 2.0  # where the queue is full, or nobody serves the model
DISK_PATIENCE_S = 5.0
CANCEL_PATIENCE_S = 30.0
LINES_AT_ONCE = 16  # read, or looked at
TIMED_OUT = 504

_INPUT_GONE = LineError(code="file_not_found", message="The input file is gone.")

T = TypeVar("T")


class Desks(NamedTuple):
    """What a batch is worked on with."""

    redis: Redis
    gateway: GenerationGateway
    jobs: JobDesk
    files: FileDesk
    settings: ApiSettings
    metrics: ApiMetrics


class BatchRun:
    """Works on a batch that was taken, as its `epoch`."""

    def __init__(self, desks: Desks, batch: Batch, epoch: int) -> None:
        self.hold = Hold(desks.redis, batch, epoch)
        self._desks = desks
        self._batch_id = batch.batch_id
        self._spec = batch.spec
        self._state = batch.state
        self._input = desks.files.disk.path(batch.spec.input_file_id)
        self._part = desks.files.disk.part(batch.batch_id, epoch)
        self._done: set[int] = set()
        self._running: dict[int, str] = {}  # the `custom_id` of each line that has a job
        self._unwritten: list[Entry] = []

    async def run(self) -> None:
        """Work until the batch has ended; raises TakenOverError, ApiError or OSError."""
        if self._state.status == "validating":
            await self._validate()
        if self._state.status == "in_progress":
            await self._recall()
            await self._work()
            await self._note_the_rest()
            await self.hold.enter("finalizing")
        if self._state.status == "finalizing":
            await self._finalize()

    # Each status.

    async def _validate(self) -> None:
        checker = LineChecker(self._spec.endpoint, self._desks.settings.max_body_bytes)
        try:
            await self._desks.files.find(self._spec.input_file_id, self._spec.tenant)
            with self._input.open("rb") as file:
                while await asyncio.to_thread(checker.check_some, file):
                    await self.hold.say_when_due()
            self._state.errors = checker.end()
        except (FileNotFoundHereError, FileNotFoundError):
            self._state.errors = [_INPUT_GONE]
        self._state.total = checker.num_lines
        await self.hold.enter("failed" if self._state.errors else "in_progress")

    async def _recall(self) -> None:
        """Count what was done before, by whomever."""
        parts = self._desks.files.disk.parts(self._batch_id)
        self._done = await self._held(asyncio.to_thread(count_all, parts, self._state))

    async def _work(self) -> None:
        waiting = self._lines_to_do()
        while not self.hold.must_end:
            is_all = await self._fill(waiting)
            has_news = await self._collect()
            if is_all and not self._running and not self._unwritten:
                return
            if not has_news:
                await asyncio.sleep(POLL_S)
            await self.hold.say_when_due()

    async def _note_the_rest(self) -> None:
        """Take what runs off the queue, and say of each line without an answer why."""
        if not self.hold.must_end:
            return
        # Among the next lines are those that an earlier worker on the batch has made jobs of.
        for number, line in await _next(self._lines_to_do(), WINDOW):
            self._running[number] = line.custom_id
        for number in list(self._running):
            await reachable(queueing.cancel(self._desks.redis, self._name(number)))
        until = time.monotonic() + CANCEL_PATIENCE_S
        while self._running and time.monotonic() < until:
            if not await self._collect():
                await asyncio.sleep(POLL_S)
            await self.hold.say_when_due()
        self._running.clear()
        self._unwritten += await self._held(asyncio.to_thread(self._ends_of_the_rest))
        while self._unwritten:
            await self._write()
            await self.hold.say_when_due()

    def _ends_of_the_rest(self) -> list[Entry]:
        return [
            of_end(number, self._name(number), line.custom_id, *self.hold.why_it_ended)
            for number, line in self._lines_to_do()
        ]

    async def _finalize(self) -> None:
        """Put the parts together into the files that the client gets."""
        state = self._state
        if state.completed:
            state.output_file_id = await self._held(self._write_file("output", is_good=True))
        if state.failed:
            state.error_file_id = await self._held(self._write_file("error", is_good=False))
        await self.hold.enter(self.hold.end)
        await asyncio.to_thread(self._desks.files.disk.drop_parts, self._batch_id)

    async def _write_file(self, name: str, *, is_good: bool) -> str:
        # The same name each time: whoever does it once more replaces what is there.
        digest = hashlib.blake2b(f"{self._batch_id}:{name}".encode(), digest_size=16).hexdigest()
        record = await self._desks.files.keep(
            chosen_lines(self._desks.files.disk.parts(self._batch_id), is_good),
            self._spec.tenant,
            f"{self._batch_id}_{name}.jsonl",
            "batch_output",
            self._spec.output_ttl_s,
            file_id=f"file-{digest}",
        )
        return record.file_id

    async def _held(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what may take long, and keep the batch meanwhile."""
        working = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait([working], timeout=hold.LEASE_S / 5))[0]:
                await self.hold.say()
            return working.result()
        finally:
            working.cancel()

    # Lines and their jobs.

    def _lines_to_do(self) -> Iterator[tuple[int, Line]]:
        """Yield what has neither a result nor a job; blocking."""
        try:
            for number, line in read_lines(self._input):
                if number not in self._done and number not in self._running:
                    yield number, line
        except FileNotFoundError:  # its owner has deleted it: what is answered is all there will be
            self._state.errors = [_INPUT_GONE]

    async def _fill(self, waiting: Iterator[tuple[int, Line]]) -> bool:
        """Enqueue lines until the window is full; say whether there are none left."""
        while len(self._running) + len(self._unwritten) < WINDOW:
            lines = await _next(waiting, LINES_AT_ONCE)
            for number, line in lines:
                while not await self._enqueue(number, line):
                    await asyncio.sleep(PATIENCE_S)
                    await self._collect()
                    await self.hold.say_when_due()
                    if self.hold.must_end:
                        return False
                await asyncio.sleep(0)  # a wrong line waits for nothing, and there may be thousands
            if len(lines) < LINES_AT_ONCE:
                return True
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
            self._note(of_refusal(number, name, line.custom_id, error))
            return True
        self._running[number] = line.custom_id
        return True

    async def _collect(self) -> bool:
        """Take the answers of the jobs that have ended; say whether there was anything new."""
        numbers = list(self._running)
        names = [self._name(number) for number in numbers]
        has_ended = await reachable(batch_store.have_ended(self._desks.redis, names))
        ended = [number for number, is_over in zip(numbers, has_ended, strict=True) if is_over]
        for start in range(0, len(ended), LINES_AT_ONCE):
            some = ended[start : start + LINES_AT_ONCE]
            for entry in await asyncio.gather(*(self._entry_of(number) for number in some)):
                if entry is not None:
                    self._note(entry)
        has_news = bool(self._unwritten)
        await self._write()
        return has_news

    async def _entry_of(self, number: int) -> Entry | None:
        """Return a line's result; None where an operator has put its job back meanwhile."""
        name, custom_id = self._name(number), self._running[number]
        try:
            job = await self._desks.jobs.look(name, self._spec.tenant)
        except JobNotFoundError as error:
            if self.hold.must_end:  # there may never have been one
                return of_end(number, name, custom_id, *self.hold.why_it_ended)
            return of_refusal(number, name, custom_id, error)
        if job.response is None:
            return None
        if job.status == "canceled":
            why = self.hold.why_it_ended if self.hold.must_end else CANCELLED
            return of_end(number, name, custom_id, *why)
        # A job's time is its batch's.
        if job.status == "expired" or job.response.status_code == TIMED_OUT:
            return of_end(number, name, custom_id, *self.hold.why_it_ended)
        return of_job(number, custom_id, job)

    def _note(self, entry: Entry) -> None:
        self._running.pop(entry.number, None)
        self._done.add(entry.number)
        self._unwritten.append(entry)

    async def _write(self) -> None:
        """Write what was noted; where the disk refuses, keep it and wait a while."""
        if not self._unwritten:
            return
        try:
            await asyncio.to_thread(append_entries, self._part, self._unwritten)
        except OSError as error:
            logger.warning("batch %s: the disk refuses: %s", self._batch_id, error)
            await asyncio.sleep(DISK_PATIENCE_S)
            return
        for entry in self._unwritten:
            count(self._state, entry)
            self._desks.metrics.count_line(entry.is_good)
        self._unwritten = []

    def _name(self, number: int) -> str:
        return f"{self._batch_id}-{number}"


async def _next(lines: Iterator[tuple[int, Line]], limit: int) -> list[tuple[int, Line]]:
    """Take the next lines, read in a thread."""
    return await asyncio.to_thread(lambda: list(islice(lines, limit)))
