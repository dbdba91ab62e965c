"""Logs as lines and as objects, with the request that they are about."""

from __future__ import annotations

import json
import logging

from worker.wire.logs import REQUEST_ID, JsonFormatter, TextFormatter


def _record(*, failed: bool = False) -> logging.LogRecord:
    try:
        if failed:
            raise ValueError("a\nb")
        exc_info = None
    except ValueError as error:
        exc_info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("api", logging.WARNING, "f", 1, "%d jobs", (3,), exc_info)
    record.created, record.msecs = 0.0, 7.0
    return record


def test_a_line_is_one_object() -> None:
    line = JsonFormatter().format(_record(failed=True))
    assert "\n" not in line
    entry = json.loads(line)
    assert entry.pop("exception").endswith("ValueError: a\nb")
    assert entry == {
        "time": "1970-01-01T00:00:00.007Z", "level": "warning", "logger": "api",
        "message": "3 jobs",
    }  # fmt: skip


def test_both_name_the_request() -> None:
    token = REQUEST_ID.set("req_1")
    try:
        assert json.loads(JsonFormatter().format(_record()))["request_id"] == "req_1"
        assert TextFormatter().format(_record()).startswith("[req_1] ")
    finally:
        REQUEST_ID.reset(token)
    assert "req_1" not in TextFormatter().format(_record())
