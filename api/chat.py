"""Messages as the worker takes them."""

from __future__ import annotations

import msgspec

from api.content import part_text
from api.errors import InvalidRequestError
from api.schemas import ChatCompletionRequest, MessageParam, ToolCallParam
from worker.wire.messages import Chat, ChatMessage, ToolCall, Tools


def chat_of(request: ChatCompletionRequest, tools: Tools | None) -> Chat:
    """Return the checked conversation; raises InvalidRequestError."""
    continues = request.continue_final_message or False
    if continues and request.add_generation_prompt:
        raise InvalidRequestError(
            "'continue_final_message' and 'add_generation_prompt' exclude each other.",
            param="continue_final_message",
        )
    return Chat(
        [_message(message, index) for index, message in enumerate(request.messages)],
        tools,
        request.chat_template_kwargs or {},
        # A message that is to be continued is no reason to begin another.
        add_generation_prompt=not continues and request.add_generation_prompt is not False,
        continue_final_message=continues,
    )


def _message(message: MessageParam, index: int) -> ChatMessage:
    param = f"messages[{index}]"
    if message.tool_calls and message.role != "assistant":
        raise InvalidRequestError(
            f"'{param}.tool_calls' is for messages of the assistant.", param=f"{param}.tool_calls"
        )
    if message.role == "tool" and message.tool_call_id is None:
        raise InvalidRequestError(
            f"Missing required parameter: '{param}.tool_call_id'.",
            param=f"{param}.tool_call_id",
            code="missing_required_parameter",
        )
    calls = [
        _call(call, f"{param}.tool_calls[{place}]")
        for place, call in enumerate(message.tool_calls or [])
    ]
    # "developer" is OpenAI's newer word for the same role, which few chat templates know.
    role = "system" if message.role == "developer" else message.role
    content = _content(message, f"{param}.content")
    return ChatMessage(role, content, message.name, calls, message.tool_call_id)


def _call(call: ToolCallParam, param: str) -> ToolCall:
    if call.type != "function" or call.function is None:
        raise InvalidRequestError(f"'{param}' must be a call of a function.", param=param)
    try:
        arguments = msgspec.json.decode(call.function.arguments)
    except (msgspec.DecodeError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequestError(
            f"'{param}.function.arguments' must be a JSON object, written as a string.",
            param=f"{param}.function.arguments",
        )
    return ToolCall(call.id, call.function.name, call.function.arguments)


def _content(message: MessageParam, param: str) -> str:
    match message.content:
        case str() as text:
            return text
        case None if message.role == "assistant":
            return ""
        case None | []:
            raise InvalidRequestError(f"'{param}' must not be empty.", param=param)
        case parts:
            return "\n".join(
                part_text(part, f"{param}[{index}]") for index, part in enumerate(parts)
            )
