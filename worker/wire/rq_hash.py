"""What RQ 3.0 expects to find in a job's hash and in its results."""

from __future__ import annotations

import pickle
import zlib
from base64 import b64encode

import msgspec

from worker.wire import codec, keys, lua
from worker.wire.job_record import JobRecord
from worker.wire.messages import Chat, GenerateJob, Prompts

WEBHOOK_KEEP_S = 12 * 3600
"""How long at least a job that owes a webhook stays after its end: longer than the last try."""

_FUNCTION = "worker.jobs.generate"
# RQ unpickles (function, instance, args, kwargs). It is the same for every job: the request itself
# is in the field `dfl`, where no tool shows it and nobody unpickles it.
_DATA = pickle.dumps((_FUNCTION, None, (), {}), protocol=5)


def new_job(
    job: GenerateJob,
    *,
    queue: str,
    timeout_s: int,
    result_ttl_s: int,
    failure_ttl_s: int,
    max_attempts: int,
    max_running: int = 0,
    max_waiting: int = 0,
    record: JobRecord,
) -> list[msgspec.Raw | str | int]:
    """Return the fields and values of a queued job's hash, in turn, without the request."""
    now = lua.utc_now()
    fields: dict[str, msgspec.Raw | str | int] = {
        "created_at": now,
        "enqueued_at": now,
        "status": "queued",
        "origin": queue,
        "data": codec.for_lua(_DATA),
        "description": _describe(job),
        "timeout": timeout_s,
        "ttl": timeout_s + result_ttl_s,
        "result_ttl": result_ttl_s,
        "failure_ttl": failure_ttl_s,
        "retries_left": max_attempts - 1,
        # Should rq's own clean-up requeue it before our reaper does.
        "enqueue_at_front_on_retry": 1,
        "started_at": "",
        "ended_at": "",
        "last_heartbeat": "",
        "worker_name": "",
        "dfl_api": job.api_id,
        "dfl_tenant": job.tenant,
        "dfl_job": codec.for_lua(record),
    }
    optional: dict[str, str | int | None] = {
        "dfl_cost": None if num_places(job) == 1 else num_places(job),
        "dfl_mode": None if job.mode is None else keys.offer(job.mode),
        "dfl_max_running": max_running or None,
        "dfl_max_waiting": max_waiting or None,
        "dfl_hook_ttl": None if record.webhook is None else WEBHOOK_KEEP_S,
    }
    fields |= {name: value for name, value in optional.items() if value is not None}
    return [part for pair in fields.items() for part in pair]


def num_places(job: GenerateJob) -> int:
    """Return how many sequences a job runs: so many places of a batch it takes."""
    return job.n * (len(job.input.prompts) if isinstance(job.input, Prompts) else 1)


def return_value(result: bytes | None) -> str:
    """Return a result as RQ stores it; empty for none."""
    if result is None:
        return ""
    # As text: rq-dashboard shows results as JSON, which knows no bytes.
    return b64encode(pickle.dumps(result.decode(errors="replace"), protocol=5)).decode()


def exc_string(text: str) -> str:
    """Return the text of a failure as RQ stores it."""
    return b64encode(zlib.compress(text.encode())).decode()


def _describe(job: GenerateJob) -> str:
    # RQ would otherwise describe a job by its arguments; a prompt must never show up there.
    kind = "chat" if isinstance(job.input, Chat) else "completion"
    return f"{kind} with {job.model}" + (", streamed" if job.stream else "")
