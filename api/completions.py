"""POST /v1/completions and /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from litestar import Controller, Response, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import RawBody

from api.answering import AnyRequest, answer
from api.auth import admit
from api.catalog import find_served_model
from api.decoding import decode_request
from api.errors import ErrorBody
from api.jobs import Sender, chat_job, completion_job, priority_of, tier_used
from api.openapi import body_of
from api.responses import ChatCompletion, Completion
from api.schemas import ChatCompletionRequest, CompletionRequest, GenerationRequest
from api.services import AppServices
from api.writers import ChatWriter, TextWriter, Wishes
from worker.wire.messages import ModelInfo

_ERRORS = {
    status: ResponseSpec(ErrorBody, description=words, generate_examples=False)
    for status, words in {
        400: "The request is wrong; `param` names the field.",
        401: "The API key is missing or wrong.",
        404: "There is no such model.",
        429: "Too much at once; see Retry-After.",
        503: "Nobody can serve this now.",
    }.items()
}


class CompletionController(Controller):
    path = "/v1"
    tags = ["generation"]  # noqa: RUF012
    guards = [admit]  # noqa: RUF012
    status_code = 200

    @post(
        "/completions",
        status_code=200,
        operation_class=body_of(CompletionRequest),
        responses={200: ResponseSpec(Completion, generate_examples=False), **_ERRORS},
    )
    async def create_completion(
        self, request: AnyRequest, body: RawBody, services: AppServices
    ) -> Response[Any]:
        """Continue one or more prompts."""
        wanted = decode_request(body, request.headers.get("content-type", ""), CompletionRequest)
        model = await find_served_model(services, wanted.model)
        job = completion_job(wanted, model, _sender(request, services))
        writer = TextWriter(job, _wishes(wanted, model))
        return await answer(request, services, job, priority_of(wanted), writer)

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
        content_type = request.headers.get("content-type", "")
        wanted = decode_request(body, content_type, ChatCompletionRequest)
        model = await find_served_model(services, wanted.model)
        job = chat_job(wanted, model, _sender(request, services))
        writer = ChatWriter(job, _wishes(wanted, model))
        return await answer(request, services, job, priority_of(wanted), writer)


def _sender(request: AnyRequest, services: AppServices) -> Sender:
    timeout_s = services.settings.request_timeout
    return Sender(services.gateway.api_id, request.state.tenant, timeout_s)


def _wishes(wanted: GenerationRequest, model: ModelInfo) -> Wishes:
    options = wanted.stream_options
    return Wishes(
        system_fingerprint=model.fingerprint,
        include_usage=bool(options and options.include_usage),
        return_token_ids=bool(wanted.return_token_ids),
        service_tier=tier_used(wanted),
    )
