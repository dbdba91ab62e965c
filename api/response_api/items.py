"""Input items, and output items that come back as input, as the turns of a chat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from api.content import part_text
from api.errors import InvalidRequestError
from api.schemas import ContentPart, FunctionCallParam, MessageParam, ToolCallParam

T = TypeVar("T")

_TEXT_PARTS = {"input_text", "output_text", "text"}


class InputPart(Struct, frozen=True):
    """A part of a message; what else an output's part holds says nothing to a model."""

    type: str
    text: str | None = None


class InputMessage(Struct, frozen=True):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputPart]


class InputCall(Struct, frozen=True):
    call_id: str
    name: str
    arguments: str


class InputCallOutput(Struct, frozen=True):
    call_id: str
    output: str | list[InputPart]


def messages_of(given: str | list[dict[str, Any]]) -> list[MessageParam]:
    """Return the turns; calls that follow each other are one turn of the assistant's."""
    if isinstance(given, str):
        return [MessageParam(role="user", content=given)]
    if not given:
        raise InvalidRequestError("'input' must not be an empty list.", param="input")
    messages: list[MessageParam] = []
    for index, item in enumerate(given):
        message = _message(item, f"input[{index}]")
        if message.tool_calls and messages and messages[-1].role == "assistant":
            message = _joined(messages.pop(), message)
        messages.append(message)
    return messages


def _message(item: dict[str, Any], param: str) -> MessageParam:
    kind = item.get("type", "message")
    read = _KINDS.get(kind) if isinstance(kind, str) else None
    if read is None:
        offered = ", ".join(f"'{name}'" for name in _KINDS)
        raise InvalidRequestError(
            f"'{param}.type' must be one of {offered}.",
            param=f"{param}.type",
            code="unsupported_parameter",
        )
    return read(item, param)


def _from_message(item: dict[str, Any], param: str) -> MessageParam:
    given = _convert(item, InputMessage, param)
    return MessageParam(role=given.role, content=_content(given.content, f"{param}.content"))


def _from_call(item: dict[str, Any], param: str) -> MessageParam:
    given = _convert(item, InputCall, param)
    function = FunctionCallParam(name=given.name, arguments=given.arguments)
    call = ToolCallParam(id=given.call_id, type="function", function=function)
    return MessageParam(role="assistant", content="", tool_calls=[call])


def _from_call_output(item: dict[str, Any], param: str) -> MessageParam:
    given = _convert(item, InputCallOutput, param)
    content = _content(given.output, f"{param}.output")
    return MessageParam(role="tool", content=content, tool_call_id=given.call_id)


_KINDS: dict[str, Callable[[dict[str, Any], str], MessageParam]] = {
    "message": _from_message,
    "function_call": _from_call,
    "function_call_output": _from_call_output,
}


def _content(given: str | list[InputPart], param: str) -> str:
    if isinstance(given, str):
        return given
    if not given:
        raise InvalidRequestError(f"'{param}' must not be empty.", param=param)
    return "\n".join(_text(part, f"{param}[{index}]") for index, part in enumerate(given))


def _text(part: InputPart, param: str) -> str:
    kind = "text" if part.type in _TEXT_PARTS else part.type
    return part_text(ContentPart(type=kind, text=part.text), param)


def _joined(before: MessageParam, after: MessageParam) -> MessageParam:
    calls = [*(before.tool_calls or []), *(after.tool_calls or [])]
    return msgspec.structs.replace(before, tool_calls=calls)


def _convert(item: dict[str, Any], kind: type[T], param: str) -> T:
    try:
        return msgspec.convert(item, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"Invalid value for '{param}': {error}.", param=param) from None
