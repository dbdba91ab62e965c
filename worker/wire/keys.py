"""Every key and channel name in Redis: RQ's own layout, and ours under `dfl:`."""

from __future__ import annotations

import os
import re

# rq reads the same variable at import; two answers would split the queue in two.
RQ_PREFIX = os.environ.get("RQ_KEY_PREFIX", "rq")
DFL_PREFIX = "dfl"

PRIORITIES = ("interactive", "default", "batch")

MODEL_TTL_S = 86400
"""How long a model stays known after its last worker's beat."""

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


def queue_name(model: str, priority: str = "default") -> str:
    """Return RQ's name of a queue.

    RQ joins queue names with commas and rq-dashboard puts them into URL paths, so a slash, a comma
    or a space of the model's name is written `~2f`; different names stay different.
    """
    if priority not in PRIORITIES:
        raise ValueError(f"priority must be one of {', '.join(PRIORITIES)}, got {priority!r}")
    return f"{_safe(model)}.{priority}"


def queue_names(model: str) -> tuple[str, ...]:
    """Return a model's queues, the most urgent first: the order in which a worker claims."""
    return tuple(queue_name(model, priority) for priority in PRIORITIES)


def offer(mode: str) -> str:
    """Return how a mode is written where jobs and workers are matched."""
    return _safe(mode).replace(".", "~2e")


def queue(name: str) -> str:
    return f"{RQ_PREFIX}:queue:{name}"


def job(job_id: str) -> str:
    return f"{RQ_PREFIX}:job:{job_id}"


def worker(name: str) -> str:
    return f"{RQ_PREFIX}:worker:{name}"


def log(job_id: str) -> str:
    """Name the stream that holds a job's output so far."""
    return f"{DFL_PREFIX}:log:{job_id}"


def idempotency(tenant: str, digest: str) -> str:
    """Name the note of which job a tenant's idempotency key, by its digest, has made."""
    return f"{DFL_PREFIX}:idempotency:{tenant}:{digest}"


def jobs_of(tenant: str) -> str:
    """Name the index of the jobs that a tenant has submitted to be asked for later."""
    return f"{DFL_PREFIX}:jobs:{tenant}"


def reply_channel(api_id: str) -> str:
    """Name the one channel on which an API process hears of all its jobs."""
    return f"{DFL_PREFIX}:api:{api_id}"


def wake_channel(queue_name: str) -> str:
    """Name the channel on which idle workers hear that a queue has got a job."""
    return f"{DFL_PREFIX}:wake:{queue_name}"


def file(file_id: str) -> str:
    """Name what is known of an uploaded or written file."""
    return f"{DFL_PREFIX}:file:{file_id}"


def files_of(tenant: str) -> str:
    """Name the index of a tenant's files, by the time they were made."""
    return f"{DFL_PREFIX}:files:{tenant}"


def batch(batch_id: str) -> str:
    """Name the hash of a batch."""
    return f"{DFL_PREFIX}:batch:{batch_id}"


def batches_of(tenant: str) -> str:
    """Name the index of a tenant's batches, by the time they were made."""
    return f"{DFL_PREFIX}:batches:{tenant}"


OPEN_BATCHES = f"{DFL_PREFIX}:batches"
"""The index of the batches that have not ended, of all tenants."""


def questions(model: str) -> str:
    """Name the list of questions about a model that no worker has taken yet."""
    return f"{DFL_PREFIX}:questions:{_safe(model)}"


def question_channel(model: str) -> str:
    """Name the channel on which a model's workers hear that there is a question."""
    return f"{DFL_PREFIX}:asked:{_safe(model)}"


def page(namespace: str, digest: bytes) -> str:
    """Name one page of the shared prefix cache."""
    return f"{DFL_PREFIX}:kv:{namespace}:{digest.hex()}"


def _safe(model: str) -> str:
    return _UNSAFE.sub(lambda match: "".join(f"~{b:02x}" for b in match[0].encode()), model)
