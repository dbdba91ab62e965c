"""What the output must look like, in whichever of the usual spellings a request says it."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from api.errors import InvalidRequestError
from api.schemas import GenerationRequest, ResponseFormat, StructuredOutputs
from worker.wire.messages import Grammar

MAX_DEFINITION_LENGTH = 131_072
MAX_ALTERNATIVES = 4096

_ANY_OBJECT = '{"type":"object"}'


def grammar_of(request: GenerationRequest) -> Grammar | None:
    """Return the one grammar of a request; raises InvalidRequestError where there are several.

    Only what costs nothing is checked here: whether a schema, pattern or grammar can be used is
    for the worker to say.
    """
    given = list(_given(request))
    if len(given) > 1:
        raise InvalidRequestError(
            f"'{given[0].param}' and '{given[1].param}' both say what the output must look like; "
            "give only one.",
            param=given[1].param,
        )
    return given[0] if given else None


def _given(request: GenerationRequest) -> Iterator[Grammar]:
    if request.response_format is not None:
        yield from _from_response_format(request.response_format)
    if request.structured_outputs is not None:
        yield from _from_structured_outputs(request.structured_outputs)
    yield from _defined(
        "guided_",
        request.guided_json,
        request.guided_regex,
        request.guided_choice,
        request.guided_grammar,
    )


def _from_response_format(given: ResponseFormat) -> Iterator[Grammar]:
    param = "response_format"
    if given.type != "json_schema" and given.json_schema is not None:
        raise InvalidRequestError(
            f"'{param}.json_schema' needs '{param}.type' to be 'json_schema'.",
            param=f"{param}.json_schema",
        )
    match given.type:
        case "text":
            return
        case "json_object":
            yield Grammar("json", _ANY_OBJECT, param)
        case "json_schema":
            if given.json_schema is None:
                raise InvalidRequestError(
                    f"Missing required parameter: '{param}.json_schema'.",
                    param=f"{param}.json_schema",
                    code="missing_required_parameter",
                )
            yield Grammar("json", _json_text(given.json_schema.schema, param), param)
        case other:
            raise InvalidRequestError(
                f"'{param}.type' must be 'text', 'json_object' or 'json_schema', "
                f"not '{other[:40]}'.",
                param=f"{param}.type",
            )


def _from_structured_outputs(given: StructuredOutputs) -> Iterator[Grammar]:
    param = "structured_outputs"
    found = list(_defined(f"{param}.", given.json, given.regex, given.choice, given.grammar))
    if given.json_object:
        found.append(Grammar("json", _ANY_OBJECT, f"{param}.json_object"))
    if not found:
        raise InvalidRequestError(
            f"'{param}' must have one of 'json', 'regex', 'choice', 'grammar' and 'json_object'.",
            param=param,
        )
    yield from found


def _defined(
    prefix: str,
    schema: object,
    regex: str | None,
    choice: list[str] | None,
    grammar: str | None,
) -> Iterator[Grammar]:
    if schema is not None:
        yield Grammar("json", _json_text(schema, f"{prefix}json"), f"{prefix}json")
    if regex is not None:
        yield Grammar("regex", _text(regex, f"{prefix}regex"), f"{prefix}regex")
    if choice is not None:
        yield Grammar("choice", _choice_text(choice, f"{prefix}choice"), f"{prefix}choice")
    if grammar is not None:
        yield Grammar("grammar", _text(grammar, f"{prefix}grammar"), f"{prefix}grammar")


def _json_text(schema: object, param: str) -> str:
    """Return a schema as text; one that comes as text must be JSON."""
    if not isinstance(schema, str):
        return _text(msgspec.json.encode(schema).decode(), param)
    try:
        msgspec.json.decode(_text(schema, param))
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequestError(f"'{param}' is not valid JSON: {error}.", param=param) from None
    return schema


def _choice_text(choice: list[str], param: str) -> str:
    if not 0 < len(choice) <= MAX_ALTERNATIVES or "" in choice:
        raise InvalidRequestError(
            f"'{param}' takes 1 to {MAX_ALTERNATIVES} strings, none of them empty.", param=param
        )
    return _text(msgspec.json.encode(choice).decode(), param)


def _text(text: str, param: str) -> str:
    if not 0 < len(text) <= MAX_DEFINITION_LENGTH:
        raise InvalidRequestError(
            f"'{param}' must have 1 to {MAX_DEFINITION_LENGTH} characters.", param=param
        )
    return text
