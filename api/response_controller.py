"""/v1/responses: create, look at, follow, cancel and delete."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from litestar import Controller, Response, delete, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery, QueryParameter, RawBody

from api.answering import AnyRequest, answer, follow, name_job
from api.auth import admit, charge, require_key
from api.decoding import decode_request
from api.endpoints import prepare_request
from api.errors import ErrorBody, InvalidRequestError, UnavailableError
from api.idempotency import HEADER, with_key
from api.jobs import Sender
from api.openapi import body_of
from api.response_api.desk import ResponseDesk
from api.response_api.objects import ResponseBody
from api.response_api.request import ResponseRequest, response_job
from api.schemas import MessageParam
from api.services import AppServices, Services
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
        make_job = partial(response_job, earlier=await _earlier(wanted, tenant, services))
        settings = services.settings
        timeout_s = settings.job_timeout if wanted.background else settings.request_timeout
        sender = Sender(services.gateway.api_id, tenant, timeout_s)
        job, priority, record, max_queue_s = await prepare_request(
            wanted, make_job, sender, services.gateway
        )
        await charge(request, job)
        terms = Terms(
            max_queue_s=max_queue_s or settings.queue_limit_s,
            outlives_client=bool(wanted.background),
            record=record,
        )
        terms = with_key(terms, request.headers.get(HEADER), tenant, PATH, body)
        if not wanted.background or job.stream:
            return await answer(request, services, job, priority, terms)
        receipt = await services.gateway.enqueue(job, priority, terms)
        name_job(request, receipt.job_id, is_joined=receipt.is_joined)
        return Response(await _desk(services).look(receipt.job_id, tenant))

    @get("/{response_id:str}", guards=[require_key], responses={200: _BODY, **_NOT_FOUND})
    async def get_response(
        self,
        request: AnyRequest,
        response_id: FromPath[str],
        services: AppServices,
        stream: FromQuery[bool] = False,
        starting_after: Annotated[int, QueryParameter(ge=-1)] = -1,
    ) -> Response[Any]:
        """Return a response as it is now, or stream it from after an event on."""
        tenant = request.state.tenant
        found = await _desk(services).look(response_id, tenant)
        if not stream:
            return Response(found)
        return await follow(request, services, response_id, tenant, starting_after)

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
        self,
        request: AnyRequest,
        response_id: FromPath[str],
        services: AppServices,
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
        order: FromQuery[Literal["asc", "desc"]] = "desc",
        after: FromQuery[str | None] = None,
    ) -> ItemList:
        """List what a response was asked, with the turns of the responses before it."""
        items = await _desk(services).input_items(response_id, request.state.tenant)
        if order == "desc":
            items.reverse()
        return _page_of(items, limit, after)


def _desk(services: Services) -> ResponseDesk:
    if services.responses is None:
        raise UnavailableError("This server keeps no responses.")
    return services.responses


def _page_of(items: list[dict[str, Any]], limit: int, after: str | None) -> ItemList:
    ids = [item["id"] for item in items]
    if after is not None and after not in ids:
        raise InvalidRequestError(f"There is no item '{after}' to go on after.", param="after")
    first = 0 if after is None else ids.index(after) + 1
    page = items[first : first + limit]
    return ItemList(
        data=page,
        first_id=page[0]["id"] if page else None,
        last_id=page[-1]["id"] if page else None,
        has_more=len(items) > first + limit,
    )


async def _earlier(wanted: ResponseRequest, tenant: str, services: Services) -> list[MessageParam]:
    """Return the turns that a response goes on after."""
    if wanted.previous_response_id is None:
        return []
    return await _desk(services).turns(wanted.previous_response_id, tenant)
