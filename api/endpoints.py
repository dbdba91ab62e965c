"""The endpoints whose requests become jobs, and how a body of one is made into it."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from api.catalog import find_served_model
from api.decoding import decode_request
from api.gateway import GenerationGateway
from api.jobs import Sender, chat_job, completion_job, priority_of, tier_used
from api.response_api.request import ResponseRequest, asked_of, response_job
from api.schemas import ChatCompletionRequest, CompletionRequest, GenerationRequest
from api.validation import check
from worker.wire.job_record import JobRecord
from worker.wire.messages import GenerateJob, ModelInfo

MAX_QUEUE_TIME_S = 30 * 86400


class JobMaker(Protocol):
    """Checks a decoded request and makes its job; raises InvalidRequestError."""

    def __call__(self, request: Any, model: ModelInfo, sender: Sender) -> GenerateJob: ...


class Endpoint(NamedTuple):
    schema: type[GenerationRequest]
    make_job: JobMaker


ENDPOINTS = {
    "/v1/completions": Endpoint(CompletionRequest, completion_job),
    "/v1/chat/completions": Endpoint(ChatCompletionRequest, chat_job),
    "/v1/responses": Endpoint(ResponseRequest, response_job),
}


class Prepared(NamedTuple):
    """A request that is right, ready for the queue."""

    job: GenerateJob
    priority: str
    record: JobRecord
    max_queue_s: float | None


async def prepare(
    endpoint: Endpoint, body: bytes, content_type: str, sender: Sender, gateway: GenerationGateway
) -> Prepared:
    """Check a body as its endpoint does; raises ApiError for whatever is wrong with it."""
    wanted = decode_request(body, content_type, endpoint.schema)
    return await prepare_request(wanted, endpoint.make_job, sender, gateway)


async def prepare_request(
    wanted: GenerationRequest, make_job: JobMaker, sender: Sender, gateway: GenerationGateway
) -> Prepared:
    """Check a decoded request; raises as `prepare`."""
    check("max_queue_time", wanted.max_queue_time, 0, MAX_QUEUE_TIME_S, is_open=True)
    model = await find_served_model(gateway, wanted.model)
    job = make_job(wanted, model, sender)
    options = wanted.stream_options
    record = JobRecord(
        system_fingerprint=model.fingerprint,
        include_usage=bool(options and options.include_usage),
        return_token_ids=bool(wanted.return_token_ids),
        service_tier=tier_used(wanted),
        continuous_usage=bool(options and options.continuous_usage_stats),
        obfuscation=bool(options and options.include_obfuscation),
        draft_events=bool(wanted.return_draft_events),
        diffusing=bool(wanted.diffusing),
        response=asked_of(wanted, job) if isinstance(wanted, ResponseRequest) else "",
    )
    return Prepared(job, priority_of(wanted), record, wanted.max_queue_time)
