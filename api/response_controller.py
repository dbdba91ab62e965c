"""/v1/responses: create, look at, follow, cancel and delete."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from litestar import Controller, Response, delete, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, QueryParameter, RawBody

from api.answering import AnyRequest, Presentation, answer, follow
from api.auth import admit, charge, require_key
from api.catalog import find_model
from api.decoding import decode_request
from api.errors import ErrorBody, UnavailableError
from api.generation import Generation
from api.idempotency import HEADER, with_key
from api.jobs import Sender, chat_job, priority_of
from api.metrics import JobObserver
from api.openapi import body_of
from api.response_api.desk import ResponseDesk
from api.response_api.objects import Asked, ResponseBody
from api.response_api.request import PREFIX, ResponseRequest, asked_of, chat_request
from api.response_api.stream import response_events
from api.response_api.writer import ResponseWriter
from api.services import AppServices, Services
from api.settings import ApiSettings
from worker.wire.messages import Delta, Finished, GenerateJob, JobRecord
from worker.wire.queueing import Terms

PATH = "/v1/responses"

_BODY = ResponseSpec(ResponseBody, generate_examples=False)
_NOT_FOUND = {
    404: ResponseSpec(ErrorBody, description="There is no such response.", generate_examples=False)
}


class DeletedBody(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "response"
    deleted: bool = True


class ItemList(msgspec.Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool = False


class ResponseController(Controller):
    path = PATH
    tags = ["responses"]  # noqa: RUF012

    @post(
        status_code=200,
        guards=[admit],
        operation_class=body_of(ResponseRequest),
        responses={200: _BODY},
    )
    async def create_response(
        self, request: AnyRequest, body: RawBody, services: AppServices
    ) -> Response[Any]:
        """Answer an input: whole, streamed, or in the background."""
        content_type = request.headers.get("content-type", "")
        wanted = decode_request(body, content_type, ResponseRequest)
        tenant = request.state.tenant
        is_background = bool(wanted.background)
        job, asked = await _prepare(wanted, tenant, services)
        await charge(request, job)
        terms = Terms(
            max_queue_s=wanted.max_queue_time or services.settings.queue_limit_s,
            outlives_client=is_background,
            record=JobRecord(response=asked),
        )
        terms = with_key(terms, request.headers.get(HEADER), tenant, PATH, body)
        if is_background and not job.stream:
            receipt = await services.gateway.enqueue(job, priority_of(wanted), terms)
            return Response(await _desk(services).look(receipt.job_id, tenant))
        return await answer(request, services, job, priority_of(wanted), terms, AS_RESPONSE)

    @get("/{response_id:str}", guards=[require_key], responses={200: _BODY, **_NOT_FOUND})
    async def get_response(
        self,
        request: AnyRequest,
        response_id: FromPath[str],
        services: AppServices,
        is_stream: Annotated[bool, QueryParameter(name="stream")] = False,
        starting_after: Annotated[int, QueryParameter(ge=-1)] = -1,
    ) -> Response[Any]:
        """Return a response as it is now, or stream it from after an event on."""
        tenant = request.state.tenant
        found = await _desk(services).look(response_id, tenant)
        if not is_stream:
            return Response(found)
        return await follow(request, services, response_id, tenant, starting_after, AS_RESPONSE)

    @post(
        "/{response_id:str}/cancel",
        status_code=200,
        guards=[require_key],
        responses={200: _BODY, **_NOT_FOUND},
    )
    async def cancel_response(
        self, request: AnyRequest, response_id: FromPath[str], services: AppServices
    ) -> Response[Any]:
        """Cancel a response that was asked for in the background."""
        return Response(await _desk(services).cancel(response_id, request.state.tenant))

    @delete("/{response_id:str}", status_code=200, guards=[require_key], responses={**_NOT_FOUND})
    async def delete_response(
        self, request: AnyRequest, response_id: FromPath[str], services: AppServices
    ) -> DeletedBody:
        """Forget a response that has ended, with all that it was asked."""
        await _desk(services).delete(response_id, request.state.tenant)
        return DeletedBody(id=response_id)

    @get("/{response_id:str}/input_items", guards=[require_key], responses={**_NOT_FOUND})
    async def list_input_items(
        self, request: AnyRequest, response_id: FromPath[str], services: AppServices
    ) -> ItemList:
        """List what a response was asked, with the turns of the responses before it."""
        items = await _desk(services).input_items(response_id, request.state.tenant)
        return ItemList(data=items, first_id=items[0]["id"], last_id=items[-1]["id"])


def _desk(services: Services) -> ResponseDesk:
    if services.responses is None:
        raise UnavailableError("This server keeps no responses.")
    return services.responses


async def _prepare(
    wanted: ResponseRequest, tenant: str, services: Services
) -> tuple[GenerateJob, str]:
    earlier = []
    if wanted.previous_response_id is not None:
        earlier = await _desk(services).turns(wanted.previous_response_id, tenant)
    chat = chat_request(wanted, earlier)
    model = await find_model(services.gateway, chat.model)
    settings = services.settings
    timeout_s = settings.job_timeout if wanted.background else settings.request_timeout
    job = chat_job(chat, model, Sender(services.gateway.api_id, tenant, timeout_s), PREFIX)
    return job, asked_of(wanted, job)


def _events(
    generation: Generation, observer: JobObserver, settings: ApiSettings, after: int
) -> AsyncIterator[bytes]:
    return response_events(generation, _writer_of(generation), observer, settings, after)


def _body(generation: Generation, deltas: list[Delta], finished: Finished) -> ResponseBody:
    return _writer_of(generation).whole(deltas, finished)


def _writer_of(generation: Generation) -> ResponseWriter:
    asked = msgspec.json.decode(generation.record.response, type=Asked)
    return ResponseWriter(generation.job, asked)


AS_RESPONSE = Presentation(_events, _body)
