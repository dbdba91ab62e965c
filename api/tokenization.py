"""POST /tokenize and /detokenize, GET /tokenizer_info: as vLLM has them, and lm-eval asks them."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Controller, get, post
from litestar.params import QueryParameter, RawBody
from msgspec import Meta, Struct

from api.answering import AnyRequest
from api.auth import admit, require_key
from api.catalog import find_model
from api.chat import chat_of
from api.decoding import decode_request
from api.errors import InvalidRequestError
from api.gateway import GenerationGateway
from api.openapi import body_of
from api.schemas import ChatCompletionRequest, MessageParam, Tool
from api.services import AppServices
from api.tool_use import tool_use_of
from api.validation import MAX_TOKEN_ID
from worker.wire.messages import ModelInfo, Prompts
from worker.wire.questions import DescribeTokenizer, Detokenize, Tokenize


class TokenizeRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /tokenize: a prompt, or the messages of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[MessageParam] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /detokenize."""

    model: str | None = None
    tokens: list[Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]]


class TokenizeBody(Struct, frozen=True, kw_only=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeBody(Struct, frozen=True):
    prompt: str


class TokenizationController(Controller):
    path = "/"
    tags = ["tokens"]  # noqa: RUF012

    @post("/tokenize", status_code=200, guards=[admit], operation_class=body_of(TokenizeRequest))
    async def tokenize(
        self, request: AnyRequest, body: RawBody, services: AppServices
    ) -> TokenizeBody:
        """Show the tokens of a prompt or of a chat, as the model would read them."""
        content_type = request.headers.get("content-type", "")
        wanted = decode_request(body, content_type, TokenizeRequest)
        model = await _model(services.gateway, wanted.model)
        answer = await services.gateway.ask(model.name, _question(wanted, model))
        return TokenizeBody(
            count=len(answer.token_ids),
            max_model_len=model.max_model_len,
            tokens=answer.token_ids,
            token_strs=answer.pieces,
        )

    @post(
        "/detokenize", status_code=200, guards=[admit], operation_class=body_of(DetokenizeRequest)
    )
    async def detokenize(
        self, request: AnyRequest, body: RawBody, services: AppServices
    ) -> DetokenizeBody:
        """Show the text of tokens; special tokens render as nothing."""
        content_type = request.headers.get("content-type", "")
        wanted = decode_request(body, content_type, DetokenizeRequest)
        model = await _model(services.gateway, wanted.model)
        answer = await services.gateway.ask(model.name, Detokenize(wanted.tokens))
        return DetokenizeBody(answer.text)

    @get("/tokenizer_info", guards=[require_key])
    async def tokenizer_info(
        self,
        services: AppServices,
        name: Annotated[str | None, QueryParameter(name="model")] = None,
    ) -> dict[str, Any]:
        """Say which special tokens and which chat template the model has."""
        model = await _model(services.gateway, name)
        answer = await services.gateway.ask(model.name, DescribeTokenizer())
        return {"model": model.name, "max_model_len": model.max_model_len, **answer.facts}


async def _model(gateway: GenerationGateway, name: str | None) -> ModelInfo:
    """Find a model by name; the only one needs none."""
    if name is not None:
        return await find_model(gateway, name)
    models = await gateway.models()
    if len(models) == 1:
        return models[0]
    raise InvalidRequestError(
        "Missing required parameter: 'model'.", param="model", code="missing_required_parameter"
    )


def _question(wanted: TokenizeRequest, model: ModelInfo) -> Tokenize:
    wants_pieces = bool(wanted.return_token_strs)
    if (wanted.prompt is None) == (wanted.messages is None):
        raise InvalidRequestError("Give either 'prompt' or 'messages'.", param="prompt")
    if wanted.prompt is not None:
        add_bos = wanted.add_special_tokens is not False
        return Tokenize(Prompts([wanted.prompt]), add_bos, wants_pieces)
    chat = ChatCompletionRequest(
        model=model.name,
        messages=wanted.messages or [],
        tools=wanted.tools,
        add_generation_prompt=wanted.add_generation_prompt,
        continue_final_message=wanted.continue_final_message,
        chat_template_kwargs=wanted.chat_template_kwargs,
    )
    if not chat.messages:
        raise InvalidRequestError("'messages' must hold at least one message.", param="messages")
    return Tokenize(chat_of(chat, tool_use_of(chat, model).tools), wants_pieces=wants_pieces)
