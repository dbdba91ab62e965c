"""/v1/jobs: submit a request of another endpoint, and come back for its answer."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Controller, Response, delete, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import FromPath, FromQuery, HeaderParameter, QueryParameter, RawBody

from api import openapi_examples as examples
from api.answering import AnyRequest, event_index, follow, name_job
from api.auth import add_headers, admit, charge, require_key
from api.decoding import decode_request
from api.endpoints import ENDPOINTS, Endpoint, Prepared, prepare
from api.errors import ApiError, ErrorBody, InvalidRequestError, UnavailableError
from api.idempotency import HEADER, with_key
from api.job_desk import JobDesk
from api.job_schemas import Job, JobList, JobRequest
from api.jobs import Sender
from api.openapi import body_of
from api.services import AppServices, Services
from api.validation import check_metadata
from api.webhook_target import webhook_of
from worker.wire.job_record import JobRecord
from worker.wire.job_views import MAX_LISTED
from worker.wire.queueing import Terms

PATH = "/v1/jobs"
MAX_CUSTOM_ID_LENGTH = 512

_NOT_FOUND = {
    404: ResponseSpec(ErrorBody, description="There is no such job.", generate_examples=False)
}
_JOB = ResponseSpec(Job, generate_examples=False, examples=[Example(value=examples.JOB)])


class JobController(Controller):
    path = PATH
    tags = ["jobs"]  # noqa: RUF012

    @post(
        status_code=202,
        guards=[admit],
        operation_class=body_of(JobRequest, examples.JOB_REQUEST),
        responses={
            202: _JOB,
            400: ResponseSpec(ErrorBody, description="It is wrong.", generate_examples=False),
            422: ResponseSpec(
                ErrorBody,
                description="The Idempotency-Key stands for another job.",
                generate_examples=False,
            ),
        },
    )
    async def submit_job(
        self, request: AnyRequest, body: RawBody, services: AppServices
    ) -> Response[Any]:
        """Enqueue a request of another endpoint as a job: completions, chats, responses."""
        desk, tenant = _desk(services), request.state.tenant
        content_type = request.headers.get("content-type", "")
        wanted = decode_request(body, content_type, JobRequest)
        sender = Sender("", tenant, services.settings.job_timeout)
        job, priority, record, max_queue_s = await _prepare(wanted, sender, services)
        await charge(request, job)
        terms = Terms(
            max_queue_s=max_queue_s or services.settings.queue_limit_s,
            outlives_client=True,
            is_listed=True,
            record=record,
        )
        terms = with_key(terms, request.headers.get(HEADER), tenant, PATH, body)
        receipt = await services.gateway.enqueue(job, priority, terms)
        add_headers(request, {"Location": f"{PATH}/{receipt.job_id}"})
        name_job(request, receipt.job_id, is_joined=receipt.is_joined)
        return Response(await desk.look(receipt.job_id, tenant), status_code=202)

    @get(guards=[require_key], responses={200: ResponseSpec(JobList, generate_examples=False)})
    async def list_jobs(
        self,
        request: AnyRequest,
        services: AppServices,
        limit: Annotated[int, QueryParameter(ge=1, le=MAX_LISTED)] = 20,
        after: FromQuery[str | None] = None,
    ) -> Response[Any]:
        """List submitted jobs, the newest first; `after` is the last id of the page before."""
        return Response(await _desk(services).list(request.state.tenant, limit, after))

    @get("/{job_id:str}", guards=[require_key], responses={200: _JOB, **_NOT_FOUND})
    async def get_job(
        self, request: AnyRequest, job_id: FromPath[str], services: AppServices
    ) -> Response[Any]:
        """Return a job: where it stands, and its answer once it has ended."""
        return Response(await _desk(services).look(job_id, request.state.tenant))

    @delete(
        "/{job_id:str}", status_code=200, guards=[require_key], responses={200: _JOB, **_NOT_FOUND}
    )
    async def cancel_job(
        self, request: AnyRequest, job_id: FromPath[str], services: AppServices
    ) -> Response[Any]:
        """Cancel a job. One that runs is `running` until its worker has stopped it."""
        return Response(await _desk(services).cancel(job_id, request.state.tenant))

    @get("/{job_id:str}/events", guards=[require_key], responses=_NOT_FOUND)
    async def stream_job(
        self,
        request: AnyRequest,
        job_id: FromPath[str],
        services: AppServices,
        last_event_id: Annotated[str | None, HeaderParameter(name="Last-Event-ID")] = None,
    ) -> Response[Any]:
        """Stream a job's answer as its endpoint would, from its beginning or after an event."""
        after = event_index(last_event_id)
        return await follow(request, services, job_id, request.state.tenant, after)


def _desk(services: Services) -> JobDesk:
    if services.jobs is None:
        raise UnavailableError("This server keeps no jobs.")
    return services.jobs


async def _prepare(wanted: JobRequest, sender: Sender, services: Services) -> Prepared:
    """Check all of a request for a job; a field of its body is named `body.<field>`."""
    record = _record(wanted, services)
    endpoint = _endpoint(wanted.url)
    body = bytes(wanted.body)
    try:
        prepared = await prepare(endpoint, body, "application/json", sender, services.gateway)
    except ApiError as error:
        if error.param or isinstance(error, InvalidRequestError):
            error.param = f"body.{error.param}" if error.param else "body"
        raise
    whole = msgspec.structs.replace(
        prepared.record,
        custom_id=record.custom_id,
        metadata=record.metadata,
        webhook=record.webhook,
    )
    return prepared._replace(record=whole)


def _record(wanted: JobRequest, services: Services) -> JobRecord:
    metadata = wanted.metadata or {}
    check_metadata(metadata)
    if len(wanted.custom_id or "") > MAX_CUSTOM_ID_LENGTH:
        raise InvalidRequestError(
            f"'custom_id' may have {MAX_CUSTOM_ID_LENGTH} characters.", param="custom_id"
        )
    webhook = None
    if wanted.webhook is not None:
        webhook = webhook_of(wanted.webhook, services.settings)
    return JobRecord(custom_id=wanted.custom_id, metadata=metadata, webhook=webhook)


def _endpoint(url: str) -> Endpoint:
    if url not in ENDPOINTS:
        raise InvalidRequestError(
            f"'url' must be one of {', '.join(ENDPOINTS)}, not '{url[:100]}'.", param="url"
        )
    return ENDPOINTS[url]
