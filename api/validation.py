"""The ranges of a request, checked before it costs anything, and its sampling settings."""

from __future__ import annotations

import math
import secrets

from api.errors import InvalidRequestError
from api.grammar import grammar_of
from api.schemas import ChatCompletionRequest, CompletionRequest, GenerationRequest
from worker.wire.messages import Grammar, Sampling

MAX_TOKEN_ID = 2**31 - 1
MAX_CHOICES = 128  # n, and prompts * n
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
MAX_LOGIT_BIAS = 1024
MAX_LOGPROBS = 20
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's; a chat goes on until it ends
MAX_SEED = 2**63 - 1
MAX_METADATA = 16  # OpenAI's, as are the lengths
MAX_KEY_LENGTH = 64
MAX_VALUE_LENGTH = 512


def sampling_of(
    request: GenerationRequest,
    max_tokens: int | None,
    logprobs: int | None,
    tool_grammar: Grammar | None = None,
) -> Sampling:
    """Return the wire's form of a checked request; a seed is drawn where none was given."""
    return Sampling(
        seed=_seed(request.seed),
        max_tokens=max_tokens,
        min_tokens=request.min_tokens or 0,
        temperature=_or_default(request.temperature, 1.0),
        top_p=_or_default(request.top_p, 1.0),
        top_k=max(request.top_k or 0, 0),  # -1 is vLLM's word for off
        min_p=request.min_p or 0.0,
        stop=_stops(request),
        stop_token_ids=request.stop_token_ids or [],
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=_or_default(request.repetition_penalty, 1.0),
        logit_bias=_logit_bias(request),
        logprobs=logprobs,
        ignore_eos=request.ignore_eos or False,
        grammar=_only(grammar_of(request), tool_grammar),
    )


def check_ranges(request: GenerationRequest) -> None:
    """Raise InvalidRequestError for the first field of both endpoints that is out of range."""
    check("n", request.n, 1, MAX_CHOICES)
    check("temperature", request.temperature, 0.0, 2.0)
    check("top_p", request.top_p, 0.0, 1.0, is_open=True)
    check("top_k", request.top_k, -1, MAX_TOKEN_ID)
    check("min_p", request.min_p, 0.0, 1.0)
    check("presence_penalty", request.presence_penalty, -2.0, 2.0)
    check("frequency_penalty", request.frequency_penalty, -2.0, 2.0)
    check("repetition_penalty", request.repetition_penalty, 0.0, 100.0, is_open=True)
    check("min_tokens", request.min_tokens, 0, MAX_TOKEN_ID)
    check("draft_length", request.draft_length, 0, MAX_TOKEN_ID)
    check("seed", request.seed, -(2**63), 2**63 - 1)
    for index, token_id in enumerate(request.stop_token_ids or []):
        check(f"stop_token_ids[{index}]", token_id, 0, MAX_TOKEN_ID)
    if request.stream_options is not None and not request.stream:
        raise InvalidRequestError(
            "'stream_options' is only allowed with 'stream': true.", param="stream_options"
        )


def check_metadata(metadata: dict[str, str]) -> None:
    """Raise InvalidRequestError for metadata that is more than we keep."""
    if (
        len(metadata) > MAX_METADATA
        or any(len(key) > MAX_KEY_LENGTH for key in metadata)
        or any(len(value) > MAX_VALUE_LENGTH for value in metadata.values())
    ):
        raise InvalidRequestError(
            f"'metadata' may have {MAX_METADATA} pairs, keys of {MAX_KEY_LENGTH} and values of "
            f"{MAX_VALUE_LENGTH} characters.",
            param="metadata",
        )


def completion_max_tokens(request: CompletionRequest) -> int:
    check("max_tokens", request.max_tokens, 0 if request.echo else 1, MAX_TOKEN_ID)
    max_tokens = DEFAULT_COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    _check_min_tokens(request, max_tokens)
    return max_tokens


def chat_max_tokens(request: ChatCompletionRequest) -> int | None:
    check("max_tokens", request.max_tokens, 1, MAX_TOKEN_ID)
    check("max_completion_tokens", request.max_completion_tokens, 1, MAX_TOKEN_ID)
    given = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(given) > 1:
        raise InvalidRequestError(
            "'max_tokens' and 'max_completion_tokens' are two names of one limit; they differ.",
            param="max_tokens",
        )
    max_tokens = given.pop() if given else None
    _check_min_tokens(request, max_tokens)
    return max_tokens


def completion_logprobs(request: CompletionRequest) -> int | None:
    check("logprobs", request.logprobs, 0, MAX_LOGPROBS)
    return request.logprobs


def chat_logprobs(request: ChatCompletionRequest) -> int | None:
    check("top_logprobs", request.top_logprobs, 0, MAX_LOGPROBS)
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequestError("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    return (request.top_logprobs or 0) if request.logprobs else None


def check(
    param: str, value: float | None, low: float, high: float, *, is_open: bool = False
) -> None:
    """Raise unless low <= value <= high (low < value where `is_open`); NaN never passes."""
    if value is None:
        return
    is_inside = (low < value if is_open else low <= value) and value <= high
    if not is_inside:
        left = f"above {low:g}" if is_open else f"at least {low}"
        right = "" if high == math.inf else f" and at most {high}"
        raise InvalidRequestError(
            f"'{param}' must be {left}{right}, not {_brief(value)}.", param=param
        )


def _brief(value: float) -> str:
    is_huge = isinstance(value, int) and value.bit_length() > 64
    return "a number that large" if is_huge else f"{value}"


def _check_min_tokens(request: GenerationRequest, max_tokens: int | None) -> None:
    if max_tokens is not None and (request.min_tokens or 0) > max_tokens:
        raise InvalidRequestError(
            f"'min_tokens' is {request.min_tokens}, above the limit of {max_tokens} tokens.",
            param="min_tokens",
        )


def _only(grammar: Grammar | None, tool_grammar: Grammar | None) -> Grammar | None:
    if grammar is not None and tool_grammar is not None:
        raise InvalidRequestError(
            f"'{grammar.param}' says what the output must look like, and so does a 'tool_choice' "
            "that asks for a call.",
            param=grammar.param,
        )
    return grammar or tool_grammar


def _seed(seed: int | None) -> int:
    if seed is None:
        return secrets.randbelow(MAX_SEED + 1)
    return seed & MAX_SEED


def _stops(request: GenerationRequest) -> list[str]:
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stops) > MAX_STOPS:
        raise InvalidRequestError(f"'stop' takes at most {MAX_STOPS} strings.", param="stop")
    if not all(0 < len(stop) <= MAX_STOP_LENGTH for stop in stops):
        raise InvalidRequestError(
            f"Each string of 'stop' must have 1 to {MAX_STOP_LENGTH} characters.", param="stop"
        )
    return stops


def _logit_bias(request: GenerationRequest) -> dict[int, float]:
    given = request.logit_bias or {}
    if len(given) > MAX_LOGIT_BIAS:
        raise InvalidRequestError(
            f"'logit_bias' takes at most {MAX_LOGIT_BIAS} tokens.", param="logit_bias"
        )
    return {_bias_token(token): _bias(token, bias) for token, bias in given.items()}


def _bias_token(token: str) -> int:
    if not (
        token.isascii() and token.isdigit() and len(token) <= 10 and int(token) <= MAX_TOKEN_ID
    ):
        raise InvalidRequestError(
            f"The keys of 'logit_bias' are token ids, not {token[:40]!r}.", param="logit_bias"
        )
    return int(token)


def _bias(token: str, bias: float) -> float:
    check(f"logit_bias.{token}", bias, -100.0, 100.0)
    return bias


def _or_default(value: float | None, default: float) -> float:
    return default if value is None else value
