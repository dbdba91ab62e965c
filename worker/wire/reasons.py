"""Why a job can end without a worker having a word in it."""

from __future__ import annotations

from typing import TypedDict

from worker.wire import rq_hash


class Reason(TypedDict):
    """What the client is told, and the same for RQ's tools."""

    status: int  # HTTP status
    message: str
    code: str
    exc: str


def _reason(status: int, code: str, message: str) -> Reason:
    return Reason(status=status, message=message, code=code, exc=rq_hash.exc_string(message))


EXPIRED = _reason(504, "timeout", "the request timed out before a worker could take it")
OVERDUE = _reason(504, "queue_timeout", "no worker took the request within its 'max_queue_time'")
FOREIGN = _reason(
    500, "unreadable", "the job holds no request of dfastllm; its payload was not run"
)
UNREADABLE = _reason(500, "unreadable", "the worker cannot read this job's request")
LOST = _reason(500, "worker_lost", "the worker died, and no attempt is left")
UNLIKE = _reason(
    500, "worker_lost", "the worker died, and none of equal weights is there to continue its output"
)
LACKING = _reason(503, "no_such_worker", "no worker is left that offers the mode of the request")
CANCELLED = _reason(499, "cancelled", "the request was cancelled")
