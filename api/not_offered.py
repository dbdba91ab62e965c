"""Fields that OpenAI or other servers know and this one does not offer: refused, never dropped."""

from __future__ import annotations

from api.errors import InvalidRequestError
from api.schemas import ChatCompletionRequest, CompletionRequest

# Values that ask for nothing are as good as absent: clients send them out of habit.
_HARMLESS: dict[str, tuple[object, ...]] = {
    "modalities": (["text"],),
    "function_call": ("none", "auto"),
}

_REQUEST_FIELDS = (
    "store", "guided_decoding_backend", "guided_whitespace_pattern",
    "prompt_logprobs",
)  # fmt: skip
_CHAT_FIELDS = (
    *_REQUEST_FIELDS, "functions", "function_call",
    "audio", "modalities", "reasoning_effort", "verbosity", "web_search_options",
    "prompt_cache_retention", "prompt_cache_options", "moderation", "chat_template",
)  # fmt: skip
_MESSAGE_FIELDS = (
    "function_call", "refusal", "audio", "annotations", "reasoning_content",
)  # fmt: skip
_STRUCTURE_FIELDS = (
    "disable_any_whitespace", "disable_additional_properties", "whitespace_pattern",
    "structural_tag",
)  # fmt: skip


def refuse_what_is_not_offered(request: CompletionRequest | ChatCompletionRequest) -> None:
    """Raise InvalidRequestError for the first field that asks for what is not there."""
    if isinstance(request, ChatCompletionRequest):
        _refuse(request, _CHAT_FIELDS, "")
        for index, message in enumerate(request.messages):
            _refuse(message, _MESSAGE_FIELDS, f"messages[{index}].")
    else:
        _refuse(request, _REQUEST_FIELDS, "")
    if request.structured_outputs is not None:
        _refuse(request.structured_outputs, _STRUCTURE_FIELDS, "structured_outputs.")


def _refuse(holder: object, names: tuple[str, ...], prefix: str) -> None:
    for name in names:
        value = getattr(holder, name)
        if _asks_for_nothing(name, value):
            continue
        raise InvalidRequestError(
            f"'{prefix}{name}' is not offered by this server yet; leave it out.",
            param=prefix + name,
            code="unsupported_parameter",
        )


def _asks_for_nothing(name: str, value: object) -> bool:
    if value is None or value is False or value in ("", [], {}):
        return True
    return any(value == harmless for harmless in _HARMLESS.get(name, ()))
