"""What is known of a job, as its owner sees it."""

from __future__ import annotations

import time
from typing import Any

from api.errors import ApiError, GenerationFailedError
from api.job_schemas import Job, JobLinks, JobProgress, JobResponse, JobStatus, WebhookState
from api.writing import whole_body
from worker.wire.job_views import JobView
from worker.wire.messages import Chat, Delta, Failed, Finished, Rejected

_ENDED: dict[str, JobStatus] = {
    "finished": "finished", "failed": "failed", "stopped": "canceled", "canceled": "canceled",
}  # fmt: skip


def job_body(view: JobView, deltas: list[Delta]) -> Job:
    """Return a job with its output so far, as `deltas` tell it from the first on."""
    job, now, status = view.job, time.time(), _status(view)
    path = f"/v1/jobs/{job.job_id}"
    return Job(
        id=job.job_id,
        url=_url(view),
        model=job.model,
        status=status,
        custom_id=view.record.custom_id,
        metadata=view.record.metadata,
        created_at=job.created,
        started_at=view.started_at,
        ended_at=view.ended_at,
        expires_at=now + view.ttl_s if view.status in _ENDED and view.ttl_s >= 0 else None,
        position=view.position,
        estimated_start_at=None if view.wait_s is None else now + view.wait_s,
        attempts=view.attempt,
        progress=_progress(view, deltas),
        response=_response(view, deltas) if view.status in _ENDED else None,
        webhook=_webhook(view),
        links=JobLinks(self=path, events=f"{path}/events"),
    )


def _url(view: JobView) -> str:
    if view.record.response:
        return "/v1/responses"
    return "/v1/chat/completions" if isinstance(view.job.input, Chat) else "/v1/completions"


def _status(view: JobView) -> JobStatus:
    if view.status not in _ENDED:
        return "running" if view.status == "started" else "queued"
    match view.ending:
        case Failed(code="queue_timeout"):
            return "expired"
        case Failed(code="timeout") if view.started_at is None:
            return "expired"
    return _ENDED[view.status]


def _progress(view: JobView, deltas: list[Delta]) -> JobProgress:
    num_output = sum(len(delta.token_ids) for delta in deltas)
    num_prompt = None if view.accepted is None else view.accepted.num_prompt_tokens
    if isinstance(view.ending, Finished):
        num_prompt = view.ending.usage.num_prompt_tokens
        num_output = view.ending.usage.num_output_tokens
    limit = view.job.sampling.max_tokens
    job_input = view.job.input
    num_prompts = 1 if isinstance(job_input, Chat) else len(job_input.prompts)
    return JobProgress(
        prompt_tokens=num_prompt,
        completion_tokens=num_output,
        max_tokens=None if limit is None else limit * view.job.n * num_prompts,
    )


def _response(view: JobView, deltas: list[Delta]) -> JobResponse:
    match view.ending:
        case Finished(num_deltas=num_deltas) as finished if num_deltas == len(deltas):
            body: Any = whole_body(view.job, view.record, deltas, finished, view.ended_at)
            return JobResponse(status_code=200, body=body)
        case Finished():
            error: ApiError = ApiError("The job's output cannot be read any more.")
        case Rejected() as event:
            error = GenerationFailedError(
                event.status, event.message, param=event.param, code=event.code
            )
        case Failed() as event:
            error = GenerationFailedError(event.status, event.message, code=event.code)
        case _:  # RQ's own tools end jobs without a word
            status = 499 if _status(view) == "canceled" else 500
            error = GenerationFailedError(status, f"The job was ended as {view.status}.")
    return JobResponse(status_code=error.status, body=error.body)


def _webhook(view: JobView) -> WebhookState | None:
    webhook, hook = view.record.webhook, view.hook
    if webhook is None:
        return None
    if hook is None or view.status not in _ENDED:
        return WebhookState(url=webhook.url, state="waiting")
    return WebhookState(
        url=webhook.url,
        state=hook.state,
        attempts=hook.attempts,
        next_attempt_at=hook.next_at,
        last_attempt_at=hook.note.at if hook.note else None,
        last_status_code=hook.note.status if hook.note else None,
        last_error=hook.note.error if hook.note else None,
    )
