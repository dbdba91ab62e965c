"""A grammar: what the whole output of a sequence must match."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from engine.request.errors import InvalidRequestError

MAX_DEFINITION_LENGTH = 131_072


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
        if len(self.definition) > MAX_DEFINITION_LENGTH:
            message = f"{self.param} must have at most {MAX_DEFINITION_LENGTH} characters"
            raise InvalidRequestError(message, self.param)
