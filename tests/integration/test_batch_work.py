"""How a batch is worked on: no faster than is good for others, and never twice into two files."""

from __future__ import annotations

import asyncio
import json
import os
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import redis
from redis.asyncio import Redis

from api.batches.disk import ORPHAN_AGE_S, FileDisk
from api.batches.file_desk import FileDesk
from api.batches.lines import BYTES_AT_ONCE, LineChecker
from api.batches.run import WINDOW, BatchRun, Desks
from api.job_desk import JobDesk
from api.metrics import ApiMetrics
from api.settings import ApiSettings
from tests.api.fakes import FakeGateway
from tests.valkey import Valkey
from worker.wire import batch_store, keys
from worker.wire.batch_store import Batch, BatchSpec, BatchState

URL = "/v1/completions"
BATCH_ID = f"batch_{0:032x}"


def _line(number: int, **body: Any) -> bytes:
    asked = {"model": "tiny", "prompt": "x", **body}
    return json.dumps(
        {"custom_id": str(number), "method": "POST", "url": URL, "body": asked}
    ).encode()


def _spec(input_file_id: str) -> BatchSpec:
    now = int(time.time())
    return BatchSpec(
        tenant="one",
        endpoint=URL,
        input_file_id=input_file_id,
        created_at=now,
        expires_at=now + 3600,
        output_ttl_s=3600,
    )


async def _begun(
    client: Redis, folder: Path, lines: list[bytes], limit: int = 1
) -> tuple[BatchRun, FileDesk]:
    """Take a batch of these lines, as an API process does."""
    files = FileDesk(client, FileDisk(folder))
    record = await files.keep(iter([b"\n".join(lines)]), "one", "in", "batch", 3600)
    state = BatchState(status="in_progress", total=len(lines))
    batch = Batch(BATCH_ID, _spec(record.file_id), state, is_cancelled=False)
    await batch_store.add_batch(client, BATCH_ID, batch.spec, state)
    epoch = dict(await batch_store.take(client, limit, 30.0))[BATCH_ID]
    gateway = FakeGateway()
    desks = Desks(client, gateway, JobDesk(client), files, ApiSettings(), ApiMetrics())  # type: ignore[arg-type]
    return BatchRun(desks, batch, epoch), files


def test_wrong_lines_are_taken_a_window_at_a_time(valkey: Valkey, tmp_path: Path) -> None:
    async def main() -> None:
        async with valkey.connect_async() as client:
            lines = [_line(number, temperature=9) for number in range(3 * WINDOW)]
            run, _ = await _begun(client, tmp_path, lines)
            waiting = run._lines_to_do()
            assert not await run._fill(waiting)
            assert len(run._unwritten) == WINDOW
            assert await run._collect()
            assert run._unwritten == []

    asyncio.run(main())


def test_files_that_are_put_together_once_more_replace_the_first(
    valkey: Valkey, tmp_path: Path
) -> None:
    async def main() -> None:
        async with valkey.connect_async() as client:
            run, files = await _begun(client, tmp_path, [_line(1, temperature=9)])
            await run._fill(run._lines_to_do())
            await run._collect()
            first = await run._write_file("error", is_good=False)
            assert await run._write_file("error", is_good=False) == first
            listed = await files.list("one", 10, None, "batch_output")
            assert [file.id for file in listed.data] == [first]

    asyncio.run(main())


def test_a_batch_whose_input_was_deleted_ends_with_what_is_answered(
    valkey: Valkey, redis_client: redis.Redis, tmp_path: Path
) -> None:
    async def main() -> None:
        async with valkey.connect_async() as client:
            run, files = await _begun(client, tmp_path, [_line(1, temperature=9), _line(2)])
            run._note(await _first_refusal(run))
            await run._write()
            (input_file,) = (await files.list("one", 10, None, "batch")).data
            await files.delete(input_file.id, "one")
            await run.run()
            batch = await batch_store.get_batch(client, BATCH_ID)
            assert batch is not None
            assert (batch.state.status, batch.state.failed) == ("failed", 1)
            assert [error.code for error in batch.state.errors] == ["file_not_found"]
            assert batch.state.error_file_id is not None

    asyncio.run(main())
    assert redis_client.zcard(keys.OPEN_BATCHES) == 0


async def _first_refusal(run: BatchRun) -> Any:
    number, line = next(run._lines_to_do())
    await run._enqueue(number, line)
    return run._unwritten.pop()


class _Sizes(BytesIO):
    """A file that notes how much is asked of it at once."""

    largest = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        assert size is not None and size > 0
        self.largest = max(self.largest, size)
        return super().readline(size)


def test_a_line_that_is_too_long_is_not_read_as_a_whole() -> None:
    file = _Sizes(_line(1) + b"x" * 5000 + b"\n" + _line(2))
    checker = LineChecker(URL, max_line_bytes=1000)
    while checker.check_some(file):
        pass
    assert file.largest <= BYTES_AT_ONCE
    assert [(one.line, one.code) for one in checker.end()] == [(1, "line_too_long")]
    assert checker.num_lines == 2


def test_only_files_of_ours_whose_time_is_over_are_dropped(valkey: Valkey, tmp_path: Path) -> None:
    names = ["notes.txt", "file-of-mine", f"file-{1:032x}", f"batch_{2:032x}.part-1"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
        old = time.time() - ORPHAN_AGE_S - 60
        os.utime(tmp_path / name, (old, old))

    async def main() -> None:
        async with valkey.connect_async() as client:
            desk = FileDesk(client, FileDisk(tmp_path))
            known = await desk.keep(iter([b"x"]), "one", "known", "batch", 3600)
            other = await desk.keep(iter([b"x"]), "one", "of another server's", "batch", 3600)
            await batch_store.drop_file(client, other)
            os.utime(tmp_path / known.file_id, (old, old))
            await desk.drop_forgotten()
            left = {path.name for path in tmp_path.iterdir()}
            assert left == {"notes.txt", "file-of-mine", known.file_id, other.file_id}

    asyncio.run(main())
