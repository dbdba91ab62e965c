"""A checked request becomes the job that crosses the queue."""

from __future__ import annotations

import time
import uuid
from typing import NamedTuple

from api.chat import chat_of
from api.errors import InvalidRequestError
from api.not_offered import refuse_what_is_not_offered
from api.options import mode_of, options_of
from api.schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
    Priority,
)
from api.tool_use import tool_use_of
from api.validation import (
    MAX_CHOICES,
    MAX_TOKEN_ID,
    chat_logprobs,
    chat_max_tokens,
    check,
    check_ranges,
    completion_logprobs,
    completion_max_tokens,
    sampling_of,
)
from worker.wire.messages import Chat, GenerateJob, ModelInfo, Prompts, Sampling
from worker.wire.tracing import trace_context

_TIERS: dict[str, Priority] = {
    "flex": "batch",
    "priority": "interactive",
    "fast": "interactive",
}


_TIER_OF: dict[Priority, str] = {
    "interactive": "priority",
    "default": "default",
    "batch": "flex",
}


class Sender(NamedTuple):
    """Who asks, and through which process the answer goes back."""

    api_id: str
    tenant: str
    timeout_s: float


def priority_of(request: GenerationRequest) -> Priority:
    """Our own word wins over OpenAI's `service_tier`."""
    return request.priority or _TIERS.get(request.service_tier or "auto", "default")


def tier_used(request: GenerationRequest) -> str:
    """Return OpenAI's name of the priority that is used; empty where the request named none."""
    return "" if request.service_tier is None else _TIER_OF[priority_of(request)]


def completion_job(request: CompletionRequest, model: ModelInfo, sender: Sender) -> GenerateJob:
    """Check a text completion and build its job; raises InvalidRequestError."""
    refuse_what_is_not_offered(request)
    check_ranges(request)
    prompts = _prompts(request)
    num_choices = len(prompts) * (request.n or 1)
    if num_choices > MAX_CHOICES:
        raise InvalidRequestError(
            f"{len(prompts)} prompts with n = {request.n or 1} make {num_choices} choices; "
            f"one request may have {MAX_CHOICES}.",
            param="n" if len(prompts) == 1 else "prompt",
        )
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise InvalidRequestError("'best_of' must equal 'n' here.", param="best_of")
    _check_lengths(prompts, model)
    sampling = sampling_of(request, completion_max_tokens(request), completion_logprobs(request))
    job_input = Prompts(prompts, request.echo or False)
    return _job("cmpl-", request, job_input, sampling, model, sender)


def chat_job(
    request: ChatCompletionRequest, model: ModelInfo, sender: Sender, prefix: str = "chatcmpl-"
) -> GenerateJob:
    """Check a chat completion and build its job; raises InvalidRequestError."""
    if not request.messages:
        raise InvalidRequestError("'messages' must hold at least one message.", param="messages")
    refuse_what_is_not_offered(request)
    check_ranges(request)
    tools, grammar = tool_use_of(request, model)
    sampling = sampling_of(request, chat_max_tokens(request), chat_logprobs(request), grammar)
    return _job(prefix, request, chat_of(request, tools), sampling, model, sender)


def _job(
    prefix: str,
    request: GenerationRequest,
    job_input: Prompts | Chat,
    sampling: Sampling,
    model: ModelInfo,
    sender: Sender,
) -> GenerateJob:
    mode, options = mode_of(request, model), options_of(request)
    return GenerateJob(
        job_id=f"{prefix}{uuid.uuid4().hex}",
        api_id=sender.api_id,
        model=model.name,
        tenant=sender.tenant,
        created=time.time(),
        input=job_input,
        sampling=sampling,
        n=request.n or 1,
        stream=request.stream or False,
        mode=mode,
        draft_length=request.draft_length,
        timeout_s=sender.timeout_s,
        cache_salt=request.cache_salt or "",
        options=options,
        trace_context=trace_context(),
    )


def _prompts(request: CompletionRequest) -> list[str | list[int]]:
    """Return the prompts of OpenAI's four spellings: text, texts, token ids, lists of them."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequestError("'prompt' must not be an empty list.", param="prompt")
    if all(isinstance(item, int) for item in prompt):
        return [_token_ids([item for item in prompt if isinstance(item, int)], "prompt")]
    if any(type(item) is not type(prompt[0]) for item in prompt):
        raise InvalidRequestError(
            "'prompt' must be a string, a list of strings, a list of token ids, or a list of such "
            "lists, not a mixture.",
            param="prompt",
        )
    return [
        _token_ids(item, f"prompt[{index}]") if isinstance(item, list) else str(item)
        for index, item in enumerate(prompt)
    ]


def _token_ids(token_ids: list[int], param: str) -> list[int]:
    if not token_ids:
        raise InvalidRequestError(f"'{param}' must not be an empty list.", param=param)
    for index, token_id in enumerate(token_ids):
        check(f"{param}[{index}]", token_id, 0, MAX_TOKEN_ID)
    return token_ids


def _check_lengths(prompts: list[str | list[int]], model: ModelInfo) -> None:
    # Text is measured by the worker, which has the tokenizer; token ids can be counted here.
    longest = max((len(prompt) for prompt in prompts if isinstance(prompt, list)), default=0)
    if longest > model.max_model_len:
        raise InvalidRequestError(
            f"The prompt has {longest} tokens; model '{model.name}' takes {model.max_model_len}.",
            param="prompt",
            code="context_length_exceeded",
        )
