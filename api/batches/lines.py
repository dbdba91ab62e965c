"""Lines of a batch: read and checked on the way in, written on the way out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from api.errors import ApiError
from api.job_schemas import Job
from worker.wire.batch_store import BatchState, LineError

MAX_LINES = 50_000
MAX_ERRORS = 100
MAX_CUSTOM_ID_LENGTH = 512

_encode = msgspec.json.Encoder().encode


class Line(Struct, frozen=True):
    """One request; `body` is left as it stands until its turn comes."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class Entry(Struct, frozen=True, kw_only=True):
    """One result, as a worker on the batch notes it: the line to write, and what it counts for."""

    number: int
    is_good: bool
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    model: str | None = None
    line: msgspec.Raw


def read_lines(path: Path) -> Iterator[tuple[int, Line]]:
    """Yield the lines of a checked file, numbered from 1."""
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                yield number, msgspec.json.decode(text, type=Line)


class LineChecker:
    """Checks a file line by line: a batch begins only where every line is a request."""

    def __init__(self, endpoint: str, max_line_bytes: int) -> None:
        self.errors: list[LineError] = []
        self.num_lines = 0
        self._endpoint = endpoint
        self._max_line_bytes = max_line_bytes
        self._custom_ids: set[str] = set()

    @property
    def is_hopeless(self) -> bool:
        return len(self.errors) >= MAX_ERRORS

    def check(self, number: int, text: bytes) -> None:
        if not text.strip():
            return
        self.num_lines += 1
        if self.num_lines > MAX_LINES:
            self._refuse(number, "too_many_lines", f"A batch may have {MAX_LINES} lines.")
            return
        if len(text) > self._max_line_bytes:
            limit = self._max_line_bytes
            self._refuse(number, "line_too_long", f"A line may have {limit} bytes.")
            return
        try:
            line = msgspec.json.decode(text, type=Line)
        except msgspec.ValidationError as error:
            self._refuse(number, "invalid_line", str(error))
        except (msgspec.DecodeError, RecursionError) as error:
            self._refuse(number, "invalid_json_line", f"This line is not valid JSON: {error}")
        else:
            self._check_line(number, line)

    def end(self) -> list[LineError]:
        """Return what is wrong with the file, at most so many errors."""
        if not self.num_lines:
            self._refuse(None, "empty_file", "The file has no lines.")
        return self.errors[:MAX_ERRORS]

    def _check_line(self, number: int, line: Line) -> None:
        if not 0 < len(line.custom_id) <= MAX_CUSTOM_ID_LENGTH:
            self._refuse(number, "invalid_custom_id", "'custom_id' is empty or too long.")
        elif line.custom_id in self._custom_ids:
            message = f"'custom_id' {line.custom_id[:100]!r} is there twice."
            self._refuse(number, "duplicate_custom_id", message, "custom_id")
        self._custom_ids.add(line.custom_id)
        if line.method != "POST":
            self._refuse(number, "invalid_method", "'method' must be 'POST'.", "method")
        if line.url != self._endpoint:
            message = f"'url' must be the batch's endpoint, '{self._endpoint}'."
            self._refuse(number, "invalid_url", message, "url")
        if not bytes(line.body).lstrip().startswith(b"{"):
            self._refuse(number, "invalid_body", "'body' must be an object.", "body")

    def _refuse(
        self, number: int | None, code: str, message: str, param: str | None = None
    ) -> None:
        if not self.is_hopeless:
            self.errors.append(LineError(code=code, message=message, line=number, param=param))


def of_job(number: int, line: Line, job: Job) -> Entry:
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
        line=_written(job.id, line, response, None),
    )


def of_refusal(number: int, request_id: str, line: Line, error: ApiError) -> Entry:
    """Note that a line's request is wrong."""
    response = {"status_code": error.status, "request_id": request_id, "body": error.body}
    return Entry(number=number, is_good=False, line=_written(request_id, line, response, None))


def of_end(number: int, request_id: str, line: Line, code: str, message: str) -> Entry:
    """Note that a line got no answer because the batch ended."""
    words = {"code": code, "message": message}
    return Entry(number=number, is_good=False, line=_written(request_id, line, None, words))


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


def now() -> int:
    return int(time.time())


def _cached(body: Any) -> int:
    """Return how many prompt tokens an answer says were cached."""
    plain = msgspec.to_builtins(body)
    usage = plain.get("usage") or {}
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    return int(details.get("cached_tokens", 0))


def _written(
    request_id: str, line: Line, response: dict[str, Any] | None, error: dict[str, str] | None
) -> msgspec.Raw:
    return msgspec.Raw(
        _encode(
            {
                "id": f"batch_req_{request_id.removeprefix('batch_')}",
                "custom_id": line.custom_id,
                "response": response,
                "error": error,
            }
        )
    )
