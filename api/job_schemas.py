"""Bodies of /v1/jobs: what is sent, and what a job looks like."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct, field

JobStatus = Literal["queued", "running", "finished", "failed", "canceled", "expired"]


class WebhookParam(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom to tell of the job's end; the secret signs it, in place of the server's."""

    url: str
    secret: str | None = None


class JobRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of OpenAI's batch files is one, as it stands: `custom_id`, `method`, `url`, `body`."""

    url: str
    body: msgspec.Raw
    method: Literal["POST"] | None = None
    custom_id: str | None = None
    metadata: dict[str, str] | None = None
    webhook: WebhookParam | None = None


class JobResponse(Struct, frozen=True, kw_only=True):
    """What the endpoint would have answered: its body, or its error's."""

    status_code: int
    body: Any


class JobProgress(Struct, frozen=True, kw_only=True):
    """How far it is, in tokens over all choices; what is not known yet is null."""

    prompt_tokens: int | None
    completion_tokens: int
    max_tokens: int | None


class WebhookState(Struct, frozen=True, kw_only=True):
    """How far the delivery is: none before the job's end."""

    url: str
    state: str  # waiting (for the job's end), pending, delivered, failed
    attempts: int = 0
    next_attempt_at: float | None = None
    last_attempt_at: float | None = None
    last_status_code: int | None = None
    last_error: str | None = None


class JobLinks(Struct, frozen=True, kw_only=True):
    self: str
    events: str


class Job(Struct, frozen=True, kw_only=True):
    """A job; all times are Unix seconds."""

    id: str
    object: str = "job"
    url: str
    model: str
    status: JobStatus
    custom_id: str | None
    metadata: dict[str, str] = field(default_factory=dict)
    created_at: float
    started_at: float | None
    ended_at: float | None
    expires_at: float | None
    position: int | None
    estimated_start_at: float | None
    attempts: int
    progress: JobProgress
    response: JobResponse | None
    webhook: WebhookState | None
    links: JobLinks


class JobList(Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: list[Job]
    first_id: str | None
    last_id: str | None
    has_more: bool
