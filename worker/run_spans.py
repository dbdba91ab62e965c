"""What traces show of a job here: its wait, its run, and in that prefill and decode.

All four are made at the job's boundaries, from times that were noted; no step and no token makes
one. A run that its worker's death has cut short leaves none: the next one's says which attempt it
is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from worker.running_job import RunningJob
from worker.wire.messages import Chat, Event, Failed, Finished, GenerateJob, Rejected
from worker.wire.tracing import open_tracing

if TYPE_CHECKING:
    from worker.wire.otel import OpenSpan, Tracing

    Attribute = str | bool | int | float | list[str]


@contextmanager
def traced_runs(worker_name: str) -> Iterator[RunSpans | None]:
    """Yield what makes the spans of a worker's jobs, or None; send what is left at the end."""
    tracing = open_tracing("worker", worker_name)
    try:
        yield None if tracing is None else RunSpans(tracing)
    finally:
        if tracing is not None:
            tracing.close()


class RunSpans:
    """Makes the spans of one worker's jobs; never from a prompt, an answer or a key."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def note_claim(self, job: GenerateJob, attempt: int) -> None:
        """Show how long a job has waited; of a second attempt nobody knows since when."""
        if attempt == 1:
            names: dict[str, Attribute] = {"dfastllm.job_id": job.job_id}
            span = self._tracing.begin(
                "queue", job.trace_context, attributes=names, start_s=job.created
            )
            span.end(end_s=max(job.created, time.time()))

    def note_refusal(self, job: GenerateJob, attempt: int, event: Rejected | Failed) -> None:
        """Show a run that ended before it began."""
        now = time.time()
        span = self._begin(job, attempt, now)
        span.end({"dfastllm.outcome": event.code or "rejected"}, error=_fault(event), end_s=now)

    def note_end(self, job: RunningJob, outcome: str, event: Event | None = None) -> None:
        """Show a run that has ended, or that goes on elsewhere; docs/traces.md has the outcomes."""
        now = time.time()
        span = self._begin(job.job, job.claim.attempt, job.claimed_at)
        first_token_at = job.first_token_at
        self._phase("prefill", span, job.claimed_at, first_token_at or now)
        if first_token_at is not None:
            self._phase("decode", span, first_token_at, now)
        attributes = _result(event, job) if isinstance(event, Finished) else {}
        attributes["dfastllm.outcome"] = outcome
        fault = outcome if outcome == "engine_error" else _fault(event)
        span.end(attributes, error=fault, end_s=max(now, job.claimed_at))

    def _begin(self, job: GenerateJob, attempt: int, start_s: float) -> OpenSpan:
        attributes = _request(job) | {"dfastllm.attempt": attempt}
        name = f"{attributes['gen_ai.operation.name']} {job.model}"
        return self._tracing.begin(name, job.trace_context, "CONSUMER", attributes, start_s)

    def _phase(self, name: str, run: OpenSpan, start_s: float, end_s: float) -> None:
        span = self._tracing.begin(name, run.carrier, start_s=start_s)
        span.end(end_s=max(start_s, end_s))


def _request(job: GenerateJob) -> dict[str, Attribute]:
    """Return what was asked for, by the semantic conventions for generative AI."""
    sampling = job.sampling
    attributes: dict[str, Attribute] = {
        "gen_ai.operation.name": "chat" if isinstance(job.input, Chat) else "text_completion",
        "gen_ai.provider.name": "dfastllm",
        "gen_ai.request.model": job.model,
        "gen_ai.request.choice.count": job.n,
        "gen_ai.request.stream": job.stream,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "dfastllm.job_id": job.job_id,
    }
    if sampling.max_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = sampling.max_tokens
    return attributes


def _result(event: Finished, job: RunningJob) -> dict[str, Attribute]:
    usage, draft, generation = event.usage, event.draft, event.generation
    attributes: dict[str, Attribute] = {
        "gen_ai.response.id": event.job_id,
        "gen_ai.response.model": job.job.model,
        "gen_ai.response.finish_reasons": job.finish_reasons,
        "gen_ai.usage.input_tokens": usage.num_prompt_tokens,
        "gen_ai.usage.output_tokens": usage.num_output_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.num_cached_tokens,
    }
    if generation is not None:
        attributes["dfastllm.mode"] = generation.mode
        attributes["dfastllm.num_forwards"] = generation.num_forwards
    if draft is not None:
        num_accepted = sum(j * count for j, count in enumerate(draft.histogram))
        attributes["dfastllm.num_draft_tokens"] = draft.num_draft_tokens
        attributes["dfastllm.num_accepted_draft_tokens"] = num_accepted
    return attributes


def _fault(event: Event | None) -> str | None:
    """Return in a word what went wrong on our side; what the client did is no fault."""
    if isinstance(event, Failed | Rejected) and event.status >= 500:
        return event.code or str(event.status)
    return None
