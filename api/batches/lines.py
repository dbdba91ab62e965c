"""Lines of a batch's input: read, and checked before the first of them runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from worker.wire.batch_store import LineError

MAX_LINES = 50_000
MAX_ERRORS = 100
MAX_CUSTOM_ID_LENGTH = 512

BYTES_AT_ONCE = 1 << 20
"""Checked in one go, and what is left of a line that is too long is read by."""


class Line(Struct, frozen=True):
    """One request; `body` is left as it stands until its turn comes."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


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
        self._number = 0  # of the line last read

    @property
    def is_hopeless(self) -> bool:
        return len(self.errors) >= MAX_ERRORS

    def check_some(self, file: BinaryIO) -> bool:
        """Check the next lines; say whether there may be more. Blocking: call it from a thread."""
        start = file.tell()
        while not self.is_hopeless and file.tell() - start < BYTES_AT_ONCE:
            text = file.readline(self._max_line_bytes + 1)
            if not text:
                return False
            self._number += 1
            self.check(self._number, text)
            while not text.endswith(b"\n") and (text := file.readline(BYTES_AT_ONCE)):
                pass
        return not self.is_hopeless

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
