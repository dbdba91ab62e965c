"""Logs of all parts: lines for people, or one JSON object a line; never a prompt, never a key."""

from __future__ import annotations

import logging
import time
from contextvars import ContextVar
from typing import Any

import msgspec

FORMATS = ("text", "json")

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Of the HTTP request that the running task belongs to."""


def set_up_logs(level: str, form: str = "text") -> None:
    """Log to stderr from `level` on, in one of FORMATS."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


class TextFormatter(logging.Formatter):
    """Time, level, logger and message, and the request that it is about."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        request_id = REQUEST_ID.get()
        line = super().format(record)
        return f"[{request_id}] {line}" if request_id else line


class JsonFormatter(logging.Formatter):
    """The same as an object, with the trace of an exception as one string."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            entry["request_id"] = request_id
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry).decode()
