"""Request bytes to structs; a fault comes back with the path of the field it is in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from api.errors import InvalidRequestError, UnsupportedMediaError

T = TypeVar("T")

MAX_SEARCHED_ITEMS = 1000  # where an error sits is worth some time, not all of it
MAX_NAME_LENGTH = 100  # a name nobody knows can be as long as the body

_PATH = re.compile(r"^(?P<words>.*) - at (?:`key` in )?`\$\.?(?P<path>.*)`$", re.DOTALL)
_FIELD = re.compile(
    r"^Object (?P<what>contains unknown|missing required) field `(?P<name>.*)`$", re.DOTALL
)
_ANY_ITEM = "[...]"  # what msgspec says in place of an index


def decode_request(body: bytes, content_type: str, model: type[T]) -> T:
    """Decode and check the types; raise an error that names the field, or the place in the text."""
    _check_media(content_type)
    if not body:
        raise InvalidRequestError(
            "The request body is empty; send a JSON object.", code="invalid_json"
        )
    try:
        return msgspec.json.decode(body, type=model)
    except msgspec.ValidationError as error:
        raise _field_error(str(error), body, model) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(
            f"The request body is not valid JSON: {error}", code="invalid_json"
        ) from None


def _check_media(content_type: str) -> None:
    # A web page may send text/plain to any address without asking; JSON it may not.
    media = content_type.partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        raise UnsupportedMediaError(
            f"Content-Type must be application/json, not {media or 'absent'}."
        )


def _field_error(text: str, body: bytes, model: type[object]) -> InvalidRequestError:
    found = _PATH.match(text)
    words, path = (found["words"], found["path"]) if found else (text, "")
    if _ANY_ITEM in path:
        path = _locate(msgspec.json.decode(body), path, model, text)
    if (field := _FIELD.match(words)) is not None:
        name = field["name"][:MAX_NAME_LENGTH]
        param = f"{path}.{name}" if path else name
        if field["what"] == "contains unknown":
            return InvalidRequestError(
                f"Unrecognized request argument supplied: {param}",
                param=param,
                code="unknown_parameter",
            )
        return InvalidRequestError(
            f"Missing required parameter: '{param}'.",
            param=param,
            code="missing_required_parameter",
        )
    message = f"Invalid value for '{path}': {_lower_first(words)}." if path else f"{words}."
    return InvalidRequestError(message, param=path or None, code="invalid_type")


def _lower_first(words: str) -> str:
    return words[:1].lower() + words[1:]


def _locate(document: Any, path: str, model: type[object], text: str) -> str:
    """Fill each `[...]` of a path: the item meant is one that alone brings about the same error."""
    while _ANY_ITEM in path:
        before, _, after = path.partition(_ANY_ITEM)
        for name, reduced in _with_one_item(document, before):
            if _complaint(reduced, model) == text:
                document, path = reduced, before + name + after
                break
        else:
            return before  # too long a list to search: the field itself is named
    return path


def _with_one_item(document: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the document with the container at `path` reduced to one item, for each item."""
    container = _at(document, path)
    if isinstance(container, dict):
        for key in list(container)[:MAX_SEARCHED_ITEMS]:
            yield f".{key}", _replaced(document, path, {key: container[key]})
    elif isinstance(container, list):
        for index, item in enumerate(container[:MAX_SEARCHED_ITEMS]):
            yield f"[{index}]", _replaced(document, path, _OneOf(index, item))


class _OneOf(list[Any]):
    """A list of one item that still answers to the index the item had."""

    def __init__(self, index: int, item: Any) -> None:
        super().__init__([item])
        self.index_before = index


def _steps(path: str) -> list[str | int]:
    names = re.findall(r"[^.\[\]]+|\[\d+\]", path)
    return [int(name[1:-1]) if name.startswith("[") else name for name in names]


def _at(document: Any, path: str) -> Any:
    for step in _steps(path):
        document = document[0 if isinstance(document, _OneOf) else step]
    return document


def _replaced(document: Any, path: str, value: Any) -> Any:
    """Return the document with the value at `path` replaced; the original stays as it is."""
    steps = _steps(path)
    if not steps:
        return value
    return _replaced_at(document, steps, value)


def _replaced_at(document: Any, steps: list[str | int], value: Any) -> Any:
    if not steps:
        return value
    step, *rest = steps
    if isinstance(document, _OneOf):
        return _OneOf(document.index_before, _replaced_at(document[0], rest, value))
    if isinstance(document, dict):
        return document | {step: _replaced_at(document[step], rest, value)}
    copy = list(document)
    copy[int(step)] = _replaced_at(document[step], rest, value)
    return copy


def _complaint(document: Any, model: type[object]) -> str:
    try:
        msgspec.convert(document, model)
    except msgspec.ValidationError as error:
        return str(error)
    return ""
