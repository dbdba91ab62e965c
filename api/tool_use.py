"""Which functions an answer may call, and what its text must then look like."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import msgspec

from api.errors import InvalidRequestError
from api.schemas import ChatCompletionRequest, FunctionDefinition, Tool, ToolChoice
from api.tool_calls import CLOSING, OPENING, SYNTAX
from worker.wire.messages import Grammar, ModelInfo, Tools

MAX_TOOLS = 128
MAX_DEFINITIONS_LENGTH = 262_144  # of all definitions, as JSON

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ANY_OBJECT: dict[str, Any] = {"type": "object"}
# The spelling that models are trained on, and no room for a weak one to fill with spaces.
_SPELLING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class ToolUse(NamedTuple):
    """What the worker gets of a request's tools, and a grammar where a call is forced."""

    tools: Tools | None = None
    grammar: Grammar | None = None


class _Choice(NamedTuple):
    """Which functions `tool_choice` allows, whether one must be called, whether it was named."""

    names: list[str]
    is_forced: bool = False
    is_named: bool = False


def tool_use_of(request: ChatCompletionRequest, model: ModelInfo) -> ToolUse:
    """Check `tools` and `tool_choice`; raises InvalidRequestError."""
    if not request.tools:
        _refuse_choice_without_tools(request)
        return ToolUse()
    functions = _functions(request.tools)
    choice = _choice(request.tool_choice, list(functions))
    if not choice.names:
        return ToolUse()
    if model.tool_syntax != SYNTAX:
        raise InvalidRequestError(
            f"The chat template of model '{model.name}' has no place for tools, or asks for calls "
            "in a form that is not known here; leave 'tools' out.",
            param="tools",
            code="unsupported_parameter",
        )
    definitions = [functions[name] for name in choice.names]
    tools = Tools(definitions, model.tool_syntax, choice.names[0] if choice.is_named else "")
    if not choice.is_forced:
        return ToolUse(tools)
    may_be_several = request.parallel_tool_calls is not False and not choice.is_named
    return ToolUse(tools, _grammar(definitions, may_be_several))


def _refuse_choice_without_tools(request: ChatCompletionRequest) -> None:
    if request.tool_choice not in (None, "none", "auto"):
        raise InvalidRequestError("'tool_choice' needs 'tools'.", param="tool_choice")


def _functions(tools: list[Tool]) -> dict[str, dict[str, Any]]:
    """The definitions by name, in the form that chat templates take."""
    if len(tools) > MAX_TOOLS:
        raise InvalidRequestError(f"'tools' takes at most {MAX_TOOLS} functions.", param="tools")
    functions: dict[str, dict[str, Any]] = {}
    for index, tool in enumerate(tools):
        function = _function(tool, f"tools[{index}]")
        if function.name in functions:
            raise InvalidRequestError(
                f"'tools[{index}].function.name': '{function.name}' is there twice.",
                param=f"tools[{index}].function.name",
            )
        functions[function.name] = _definition(function)
    if len(msgspec.json.encode(functions)) > MAX_DEFINITIONS_LENGTH:
        raise InvalidRequestError(
            f"'tools' may have {MAX_DEFINITIONS_LENGTH} characters altogether.", param="tools"
        )
    return functions


def _function(tool: Tool, param: str) -> FunctionDefinition:
    if tool.type != "function" or tool.function is None:
        raise InvalidRequestError(
            f"'{param}' must be a function; other kinds of tools are not offered.",
            param=f"{param}.type" if tool.type != "function" else f"{param}.function",
        )
    if _NAME.fullmatch(tool.function.name) is None:
        raise InvalidRequestError(
            f"'{param}.function.name' must have 1 to 64 letters, digits, '_' or '-'.",
            param=f"{param}.function.name",
        )
    return tool.function


def _definition(function: FunctionDefinition) -> dict[str, Any]:
    definition: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        definition["description"] = function.description
    definition["parameters"] = function.parameters or _ANY_OBJECT
    return {"type": "function", "function": definition}


def _choice(given: str | ToolChoice | None, names: list[str]) -> _Choice:
    match given:
        case None | "auto":
            return _Choice(names)
        case "none":
            return _Choice([])
        case "required":
            return _Choice(names, is_forced=True)
        case ToolChoice(type="function", function=function) if function is not None:
            _check_known(function.name, names, "tool_choice.function.name")
            return _Choice([function.name], is_forced=True, is_named=True)
        case ToolChoice(type="allowed_tools", allowed_tools=allowed) if allowed is not None:
            chosen = [tool.function.name for tool in allowed.tools]
            for name in chosen:
                _check_known(name, names, "tool_choice.allowed_tools.tools")
            allowed_names = [name for name in names if name in chosen]
            return _Choice(allowed_names, is_forced=allowed.mode == "required")
    raise InvalidRequestError(
        "'tool_choice' must be 'none', 'auto', 'required', or an object that names a function or "
        "allowed tools.",
        param="tool_choice",
    )


def _check_known(name: str, names: list[str], param: str) -> None:
    if name not in names:
        raise InvalidRequestError(
            f"'{param}': there is no function '{name[:64]}' in 'tools'.", param=param
        )


def _grammar(definitions: list[dict[str, Any]], may_be_several: bool) -> Grammar:
    """Calls and nothing else, as `api.tool_calls` reads them."""
    more = ' ("\\n" call)*' if may_be_several else ""
    rules = [
        f"start: call{more}",
        f'call: "{OPENING}\\n" object "\\n{CLOSING}"',
        *_object_rules(definitions),
    ]
    return Grammar("grammar", "\n".join(rules), "tools")


def _object_rules(definitions: list[dict[str, Any]]) -> list[str]:
    """The rule `object`: a function's name, and arguments after its own schema.

    Each schema is a document of its own, so that references inside it still find their targets.
    """
    rules = [f"object: {' | '.join(f'object_{index}' for index in range(len(definitions)))}"]
    for index, definition in enumerate(definitions):
        function = definition["function"]
        head = json.dumps(f'{{"name": "{function["name"]}", "arguments": ')
        schema = json.dumps(function["parameters"] | {"x-guidance": _SPELLING})
        rules += [f'object_{index}: {head} arguments_{index} "}}"']
        rules += [f"arguments_{index}: %json {schema}"]
    return rules
