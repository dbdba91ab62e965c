"""Tool calls in an answer's text, read as the text comes in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

SYNTAX = "hermes"  # `ModelInfo.tool_syntax` of the models whose calls look like this
OPENING, CLOSING = "<tool_call>", "</tool_call>"

# As models are taught to write one: the name first.
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"(?P<name>[^"\\]*)"\s*,\s*"arguments"\s*:\s*(?=\{)')


@dataclass(frozen=True, slots=True)
class Content:
    """A piece of what the answer says."""

    text: str


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of a call: its first names the function, and each adds to the arguments."""

    index: int
    arguments: str
    name: str | None = None


Piece = Content | CallPiece


class ToolCallReader:
    """Splits one choice's text into content and calls, and holds back only what may be either.

    Arguments are handed on as they come, where a call begins with its name; one in another order
    is handed on when it is whole. What turns out to be no call is content, with its tags.
    """

    def __init__(self) -> None:
        self.num_calls = 0
        self._text = ""  # not yet handed on
        self._state = self._read_content
        self._object = _ObjectEnd()

    def read(self, text: str, *, is_last: bool = False) -> list[Piece]:
        """Take more text; return the pieces that are certain: after the last, all of them."""
        self._text += text
        pieces: list[Piece] = []
        while (found := self._state()) is not None:
            pieces += found
        if is_last:
            pieces += self._rest()
        return pieces

    # Each state returns the pieces that it found, None where it must wait for more text.

    def _read_content(self) -> list[Piece] | None:
        before, tag, after = self._text.partition(OPENING)
        if tag:
            self._text, self._state = after, self._read_head
            return _content(before.rstrip())
        # The beginning of a tag, and the space before it, may not be content.
        certain = self._text[: len(self._text) - _overlap(self._text)].rstrip()
        self._text = self._text[len(certain) :]
        return _content(certain) or None

    def _read_head(self) -> list[Piece] | None:
        if head := _HEAD.match(self._text):
            self._text, self._state = self._text[head.end() :], self._read_arguments
            self._object = _ObjectEnd()
            return [self._begin(head["name"], "")]
        body, tag, after = self._text.partition(CLOSING)
        if not tag:
            return None
        self._text, self._state = after, self._read_content
        call = _decode_call(body)
        return _content(OPENING + body + tag) if call is None else [self._begin(*call)]

    def _read_arguments(self) -> list[Piece] | None:
        end = self._object.find(self._text)
        arguments = self._text[:end]
        self._text = self._text[len(arguments) :]
        if end is not None:
            self._state = self._read_tail
        return [CallPiece(self.num_calls - 1, arguments)] if arguments else None

    def _read_tail(self) -> list[Piece] | None:
        _, tag, after = self._text.partition(CLOSING)
        if not tag:
            return None
        self._text, self._state = after, self._read_content
        return []

    def _rest(self) -> list[Piece]:
        """What the end of the text makes certain; a call that has begun stays as it is."""
        text, self._text = self._text, ""
        if self._state == self._read_head:
            return _content(OPENING + text)
        is_content = self._state == self._read_content and not (self.num_calls and text.isspace())
        return _content(text) if is_content else []

    def _begin(self, name: str, arguments: str) -> CallPiece:
        self.num_calls += 1
        return CallPiece(self.num_calls - 1, arguments, name)


@dataclass(slots=True)
class _ObjectEnd:
    """Finds where a JSON object ends, in a text that comes bit by bit."""

    depth: int = 0
    is_in_string: bool = False
    is_escaped: bool = False

    def find(self, text: str) -> int | None:
        """Return the place just after the object, None where all of the text belongs to it."""
        for place, char in enumerate(text):
            if self.is_in_string:
                self._step_in_string(char)
            elif char == '"':
                self.is_in_string = True
            elif char in "{[":
                self.depth += 1
            elif char in "}]":
                self.depth -= 1
                if self.depth == 0:
                    return place + 1
        return None

    def _step_in_string(self, char: str) -> None:
        if self.is_escaped:
            self.is_escaped = False
        elif char == "\\":
            self.is_escaped = True
        elif char == '"':
            self.is_in_string = False


@dataclass(slots=True)
class GatheredCall:
    """All of one call."""

    name: str
    arguments: list[str] = field(default_factory=list)


def gathered(text: str) -> tuple[str, list[GatheredCall]]:
    """Split the whole text of a choice into its content and its calls."""
    content: list[str] = []
    calls: list[GatheredCall] = []
    for piece in ToolCallReader().read(text, is_last=True):
        if isinstance(piece, Content):
            content.append(piece.text)
            continue
        if piece.name is not None:
            calls.append(GatheredCall(piece.name))
        calls[piece.index].arguments.append(piece.arguments)
    return "".join(content), calls


def _content(text: str) -> list[Piece]:
    return [Content(text)] if text else []


def _overlap(text: str) -> int:
    """How many characters at the end may be the beginning of a tag."""
    longest = min(len(text), len(OPENING) - 1)
    return next((n for n in range(longest, 0, -1) if OPENING.startswith(text[-n:])), 0)


def _decode_call(body: str) -> tuple[str, str] | None:
    """Return name and arguments of a call in JSON; None where it is no call."""
    try:
        call: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):  # JSON in JSON, as OpenAI has it
        return call["name"], arguments
    return call["name"], msgspec.json.encode(arguments).decode()
