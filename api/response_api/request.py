"""The body of POST /v1/responses, and the chat that it comes to."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from api.errors import InvalidRequestError
from api.jobs import Sender, chat_job, tier_used
from api.response_api.items import messages_of
from api.response_api.objects import Asked
from api.schemas import (
    ChatCompletionRequest,
    FunctionDefinition,
    FunctionName,
    GenerationRequest,
    JsonSchemaFormat,
    MessageParam,
    ResponseFormat,
    Tool,
    ToolChoice,
)
from api.validation import MAX_TOKEN_ID, check, check_metadata
from worker.wire.messages import GenerateJob, ModelInfo

LOGPROBS = "message.output_text.logprobs"
PREFIX = "resp_"  # of the ids of responses


class TextFormat(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: TextFormat | None = None
    verbosity: Any = None


class FunctionTool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tool in the flat form of this API; of the kinds that there are, functions are offered."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionToolChoice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: str
    name: str | None = None


class ResponseRequest(GenerationRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Beside OpenAI's fields those of our own, as everywhere."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    text: TextConfig | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: str | FunctionToolChoice | None = None
    parallel_tool_calls: bool | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    truncation: Literal["auto", "disabled"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    reasoning: dict[str, Any] | None = None
    conversation: Any = None
    prompt: Any = None
    max_tool_calls: Any = None
    context_management: Any = None
    moderation: Any = None
    prompt_cache_retention: Any = None
    prompt_cache_options: Any = None
    background_options: Any = None


_NOT_OFFERED = (
    "conversation", "prompt", "max_tool_calls", "context_management", "moderation",
    "prompt_cache_retention", "prompt_cache_options", "background_options", "n", "max_tokens",
    "response_format", "stream_options", "return_token_ids", "diffusing", "return_draft_events",
)  # fmt: skip
_CHAT_FIELDS = set(GenerationRequest.__struct_fields__) - {
    "max_tokens", "n", "response_format", "stream_options", "store",
}  # fmt: skip


def chat_request(request: ResponseRequest, earlier: list[MessageParam]) -> ChatCompletionRequest:
    """Return the chat that a request asks for, after the turns of earlier responses.

    Raises InvalidRequestError for what is not offered; the rest is checked as a chat.
    """
    _refuse_what_is_not_offered(request)
    check("max_output_tokens", request.max_output_tokens, 1, MAX_TOKEN_ID)
    instructions = []
    if request.instructions is not None:
        instructions = [MessageParam(role="system", content=request.instructions)]
    wants_logprobs = LOGPROBS in (request.include or ())
    return ChatCompletionRequest(
        **{name: getattr(request, name) for name in _CHAT_FIELDS},
        messages=[*instructions, *earlier, *messages_of(request.input)],
        max_completion_tokens=request.max_output_tokens,
        logprobs=wants_logprobs,
        top_logprobs=request.top_logprobs if wants_logprobs else None,
        response_format=_response_format(request.text),
        tools=[_tool(tool, index) for index, tool in enumerate(request.tools or [])],
        tool_choice=_tool_choice(request.tool_choice),
        parallel_tool_calls=request.parallel_tool_calls,
    )


def response_job(
    request: ResponseRequest,
    model: ModelInfo,
    sender: Sender,
    earlier: list[MessageParam] | None = None,
) -> GenerateJob:
    """Check a response and build its job; raises InvalidRequestError.

    `earlier` are the turns of the responses before it; without them it may name none.
    """
    if earlier is None and request.previous_response_id is not None:
        raise _not_offered("previous_response_id")
    return chat_job(chat_request(request, earlier or []), model, sender, PREFIX)


def asked_of(wanted: ResponseRequest, job: GenerateJob) -> str:
    """Return, as JSON, what a response repeats of its request."""
    text_format: Any = {"type": "text"}
    if wanted.text is not None and wanted.text.format is not None:
        given = msgspec.to_builtins(wanted.text.format)
        text_format = {name: value for name, value in given.items() if value is not None}
    asked = Asked(
        background=bool(wanted.background),
        instructions=wanted.instructions,
        max_output_tokens=wanted.max_output_tokens,
        metadata=wanted.metadata or {},
        parallel_tool_calls=wanted.parallel_tool_calls is not False,
        previous_response_id=wanted.previous_response_id,
        prompt_cache_key=wanted.prompt_cache_key,
        safety_identifier=wanted.safety_identifier,
        service_tier=tier_used(wanted) or "auto",
        store=wanted.store is not False,
        temperature=job.sampling.temperature,
        text={"format": text_format},
        tool_choice=msgspec.to_builtins(wanted.tool_choice or "auto"),
        tools=msgspec.to_builtins(wanted.tools or []),
        top_logprobs=job.sampling.logprobs or 0,
        top_p=job.sampling.top_p,
        user=wanted.user,
    )
    return msgspec.json.encode(asked).decode()


def _refuse_what_is_not_offered(request: ResponseRequest) -> None:
    for name in _NOT_OFFERED:
        if getattr(request, name) not in (None, False, [], {}):
            raise _not_offered(name)
    if any(value is not None for value in (request.reasoning or {}).values()):
        raise _not_offered("reasoning")
    if request.text is not None and request.text.verbosity is not None:
        raise _not_offered("text.verbosity")
    if request.truncation == "auto":
        raise _not_offered("truncation")
    for index, name in enumerate(request.include or []):
        if name != LOGPROBS:
            raise _not_offered(f"include[{index}]")
    if request.top_logprobs and LOGPROBS not in (request.include or ()):
        raise InvalidRequestError(
            f"'top_logprobs' needs '{LOGPROBS}' in 'include'.", param="top_logprobs"
        )
    check_metadata(request.metadata or {})
    if request.background and request.store is False:
        raise InvalidRequestError("'background' needs 'store'.", param="background")


def _not_offered(name: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"'{name}' is not offered here; leave it out.", param=name, code="unsupported_parameter"
    )


def _response_format(text: TextConfig | None) -> ResponseFormat | None:
    if text is None or text.format is None:
        return None
    given = text.format
    if given.type != "json_schema":
        return ResponseFormat(type=given.type)
    if given.schema is None:
        raise InvalidRequestError(
            "Missing required parameter: 'text.format.schema'.",
            param="text.format.schema",
            code="missing_required_parameter",
        )
    schema = JsonSchemaFormat(name=given.name, schema=given.schema, strict=given.strict)
    return ResponseFormat(type=given.type, json_schema=schema)


def _tool(tool: FunctionTool, index: int) -> Tool:
    function = None
    if tool.name is not None:
        function = FunctionDefinition(
            name=tool.name,
            description=tool.description,
            parameters=tool.parameters,
            strict=tool.strict,
        )
    elif tool.type == "function":
        raise InvalidRequestError(
            f"Missing required parameter: 'tools[{index}].name'.",
            param=f"tools[{index}].name",
            code="missing_required_parameter",
        )
    return Tool(type=tool.type, function=function)


def _tool_choice(given: str | FunctionToolChoice | None) -> str | ToolChoice | None:
    if not isinstance(given, FunctionToolChoice):
        return given
    function = None if given.name is None else FunctionName(given.name)
    return ToolChoice(type=given.type, function=function)
