"""POST /v1/completions and /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from litestar import Controller, Response, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import RawBody

from api.answering import AnyRequest, answer
from api.auth import admit, charge
from api.endpoints import ENDPOINTS, prepare
from api.errors import ErrorBody
from api.idempotency import HEADER, with_key
from api.jobs import Sender
from api.openapi import body_of
from api.responses import ChatCompletion, Completion
from api.schemas import ChatCompletionRequest, CompletionRequest
from api.services import AppServices, Services
from worker.wire.queueing import Terms

_ERRORS = {
    status: ResponseSpec(ErrorBody, description=words, generate_examples=False)
    for status, words in {
        400: "The request is wrong; `param` names the field.",
        401: "The API key is missing or wrong.",
        404: "There is no such model.",
        422: "The Idempotency-Key stands for another request.",
        429: "Too much at once; see Retry-After.",
        503: "Nobody can serve this now.",
        504: "It waited or ran too long.",
    }.items()
}


class CompletionController(Controller):
    path = "/v1"
    tags = ["generation"]  # noqa: RUF012
    guards = [admit]  # noqa: RUF012
    status_code = 200

    @post(
        ["/completions", "/fim/completions"],
        status_code=200,
        operation_class=body_of(CompletionRequest),
        responses={200: ResponseSpec(Completion, generate_examples=False), **_ERRORS},
    )
    async def create_completion(
        self, request: AnyRequest, body: RawBody, services: AppServices
    ) -> Response[Any]:
        """Continue one or more prompts, or fill in between a prompt and its suffix.

        `/v1/fim/completions` is the same by the name under which editors ask for it.
        """
        return await _answer(request, services, "/v1/completions", body)

    @post(
        "/chat/completions",
        status_code=200,
        operation_class=body_of(ChatCompletionRequest),
        responses={200: ResponseSpec(ChatCompletion, generate_examples=False), **_ERRORS},
    )
    async def create_chat_completion(
        self, request: AnyRequest, body: RawBody, services: AppServices
    ) -> Response[Any]:
        """Answer the last message of a chat."""
        return await _answer(request, services, "/v1/chat/completions", body)


async def _answer(request: AnyRequest, services: Services, path: str, body: bytes) -> Response[Any]:
    settings, tenant = services.settings, request.state.tenant
    sender = Sender(services.gateway.api_id, tenant, settings.request_timeout)
    content_type = request.headers.get("content-type", "")
    job, priority, record, max_queue_s = await prepare(
        ENDPOINTS[path], body, content_type, sender, services.gateway
    )
    await charge(request, job)
    terms = Terms(max_queue_s=max_queue_s or settings.queue_limit_s, record=record)
    terms = with_key(terms, request.headers.get(HEADER), tenant, path, body)
    return await answer(request, services, job, priority, terms)
