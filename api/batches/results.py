"""Results of a batch's lines: noted in parts as they come, and put together in the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from api.errors import ApiError
from api.job_schemas import Job
from worker.wire.batch_store import BatchState

_encode = msgspec.json.Encoder().encode


class Entry(Struct, frozen=True, kw_only=True):
    """One result, as a worker on the batch notes it: the line to write, and what it counts for."""

    number: int
    is_good: bool
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    model: str | None = None
    line: msgspec.Raw


def of_job(number: int, custom_id: str, job: Job) -> Entry:
    """Note the answer of a job that has ended."""
    assert job.response is not None
    is_good = job.response.status_code == 200
    progress = job.progress
    response = {
        "status_code": job.response.status_code, "request_id": job.id, "body": job.response.body,
    }  # fmt: skip
    return Entry(
        number=number,
        is_good=is_good,
        input_tokens=(progress.prompt_tokens or 0) if is_good else 0,
        cached_tokens=_cached(job.response.body) if is_good else 0,
        output_tokens=progress.completion_tokens if is_good else 0,
        model=job.model,
        line=_written(job.id, custom_id, response, None),
    )


def of_refusal(number: int, request_id: str, custom_id: str, error: ApiError) -> Entry:
    """Note that a line's request is wrong."""
    response = {"status_code": error.status, "request_id": request_id, "body": error.body}
    return Entry(number=number, is_good=False, line=_written(request_id, custom_id, response, None))


def of_end(number: int, request_id: str, custom_id: str, code: str, message: str) -> Entry:
    """Note that a line got no answer because the batch ended."""
    words = {"code": code, "message": message}
    return Entry(number=number, is_good=False, line=_written(request_id, custom_id, None, words))


def count(state: BatchState, entry: Entry) -> None:
    """Add a result to a batch's figures."""
    state.completed += entry.is_good
    state.failed += not entry.is_good
    state.num_input_tokens += entry.input_tokens
    state.num_cached_tokens += entry.cached_tokens
    state.num_output_tokens += entry.output_tokens
    state.model = state.model or entry.model


def read_entries(parts: list[Path]) -> Iterator[Entry]:
    """Yield each line's first result; a part may end in the middle of a line, and is heard."""
    seen: set[int] = set()
    for part in parts:
        with part.open("rb") as file:
            for text in file:
                try:
                    entry = msgspec.json.decode(text, type=Entry)
                except msgspec.DecodeError:
                    continue  # what a worker wrote when it died
                if entry.number not in seen:
                    seen.add(entry.number)
                    yield entry


def count_all(parts: list[Path], state: BatchState) -> set[int]:
    """Count what the parts hold, from nothing; returns which lines that are. Blocking."""
    state.completed = state.failed = 0
    state.num_input_tokens = state.num_cached_tokens = state.num_output_tokens = 0
    numbers: set[int] = set()
    for entry in read_entries(parts):
        numbers.add(entry.number)
        count(state, entry)
    return numbers


def append_entries(part: Path, entries: list[Entry]) -> None:
    """Write entries whole: what a failed try left behind is cut off first. Blocking."""
    with part.open("ab") as file:
        start = file.tell()
        try:
            file.write(b"".join(_encode(entry) + b"\n" for entry in entries))
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            file.truncate(start)
            raise


def chosen_lines(parts: list[Path], is_good: bool) -> Iterator[bytes]:
    """Yield the lines of the file of answers, or of the file of errors."""
    for entry in read_entries(parts):
        if entry.is_good is is_good:
            yield bytes(entry.line) + b"\n"


def _cached(body: Any) -> int:
    """Return how many prompt tokens an answer says were cached."""
    plain = msgspec.to_builtins(body)
    usage = plain.get("usage") or {}
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    return int(details.get("cached_tokens", 0))


def _written(
    request_id: str, custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None
) -> msgspec.Raw:
    return msgspec.Raw(
        _encode(
            {
                "id": f"batch_req_{request_id.removeprefix('batch_')}",
                "custom_id": custom_id,
                "response": response,
                "error": error,
            }
        )
    )
