"""A grammar: what the whole output of a sequence must match."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from engine.request.errors import InvalidRequestError

MAX_DEFINITION_LENGTH = 131_072
MAX_PATTERN_LENGTH = 16_384
"""Of regular expressions, and of rules, which may hold some: to compile one takes a time that grows
with the square of its length, half a second at this one."""


class GrammarKind(StrEnum):
    """How a grammar is defined."""

    JSON = "json"  # by a JSON schema
    REGEX = "regex"  # by a regular expression, which the whole output matches
    CHOICE = "choice"  # by a JSON list of strings, one of which is the output
    GRAMMAR = "grammar"  # by a context-free grammar in Lark's or llama.cpp's notation


@dataclass(frozen=True, slots=True)
class Grammar:
    """A kind of grammar and its definition, as text."""

    kind: GrammarKind
    definition: str
    param: str = field(default="grammar", compare=False)  # the request's field that it came from

    def __post_init__(self) -> None:
        """Raise `InvalidRequestError` where the definition is longer than any honest one."""
        is_pattern = self.kind in (GrammarKind.REGEX, GrammarKind.GRAMMAR)
        limit = MAX_PATTERN_LENGTH if is_pattern else MAX_DEFINITION_LENGTH
        if len(self.definition) > limit:
            message = f"{self.param} must have at most {limit} characters"
            raise InvalidRequestError(message, self.param)
