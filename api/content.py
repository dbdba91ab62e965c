"""Text in parts, as OpenAI's content fields may come."""

from __future__ import annotations

from api.errors import InvalidRequestError
from api.schemas import ContentPart


def part_text(part: ContentPart, param: str) -> str:
    """Return the text of one part; raises InvalidRequestError for parts of another kind."""
    if part.type != "text":
        raise InvalidRequestError(
            f"'{param}' has type '{part.type[:40]}'; only parts of type 'text' are offered.",
            param=f"{param}.type",
            code="unsupported_parameter",
        )
    if part.text is None:
        raise InvalidRequestError(f"'{param}' has no text.", param=f"{param}.text")
    return part.text
