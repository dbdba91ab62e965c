"""Request bodies of /v1/completions and /v1/chat/completions, as OpenAI and its kin define them.

A field set to null counts as absent. Fields that others know and this server does not offer yet
are listed too, so that their harmless values pass and the others are refused by name.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

Priority = Literal["interactive", "default", "batch"]
ServiceTier = Literal["auto", "default", "flex", "scale", "priority", "fast"]
Remasking = Literal["low_confidence", "entropy", "margin", "random"]
CanvasCache = Literal["dual", "prefix", "none"]
Acceptance = Literal["coupled", "rejection"]


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchemaFormat(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A schema is always kept to, `strict` or not; its name and description are for the client."""

    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | bool
    strict: bool | None = None


class ResponseFormat(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """OpenAI's way to say what the output must look like."""

    type: str
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """vLLM's way to say it: one of the first five."""

    json: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: Any = None
    disable_additional_properties: Any = None
    whitespace_pattern: Any = None
    structural_tag: Any = None


class ContentPart(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: str
    text: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    refusal: Any = None


class Prediction(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """OpenAI's predicted output: what most of the answer will be."""

    type: Literal["content"]
    content: str | list[ContentPart]


class GenerationRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both endpoints share; the ranges are checked in `api.validation`."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: ServiceTier | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    mode: str | None = None
    draft_length: int | None = None
    cache_salt: str | None = None
    priority: Priority | None = None
    max_queue_time: float | None = None
    return_token_ids: bool | None = None

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    denoising_steps: int | None = None
    block_length: int | None = None
    confidence_threshold: float | None = None
    unmasking_factor: float | None = None
    remasking: Remasking | None = None
    canvas_cache: CanvasCache | None = None
    acceptance: Acceptance | None = None
    skip_verify_confidence: float | None = None
    apd_mix_weight: float | None = None
    apd_lookahead: int | None = None
    apd_window: int | None = None
    apd_max_parallel: int | None = None
    apd_threshold: float | None = None
    prediction: Prediction | None = None

    diffusing: bool | None = None
    return_draft_events: bool | None = None

    store: Any = None
    guided_decoding_backend: Any = None
    guided_whitespace_pattern: Any = None
    prompt_logprobs: Any = None


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | list[str] | None = None


class FunctionDefinition(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A function that the model may call; `parameters` is a JSON schema of its arguments."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: str
    function: FunctionDefinition | None = None
    custom: Any = None


class FunctionName(Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class FunctionReference(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: Literal["function"]
    function: FunctionName


class AllowedTools(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    mode: Literal["auto", "required"]
    tools: list[FunctionReference]


class ToolChoice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The object form of `tool_choice`: one function by name, or a part of the tools."""

    type: str
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None
    custom: Any = None


class FunctionCallParam(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    arguments: str


class ToolCallParam(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A call of an earlier answer, as the client sends it back."""

    id: str
    type: str
    function: FunctionCallParam | None = None
    custom: Any = None


class MessageParam(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One message; the null fields are those the OpenAI client sends back from its own answers."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[ToolCallParam] | None = None
    function_call: Any = None
    refusal: Any = None
    audio: Any = None
    annotations: Any = None
    reasoning_content: Any = None


class ChatCompletionRequest(
    GenerationRequest, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Body of POST /v1/chat/completions."""

    messages: list[MessageParam]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    tools: list[Tool] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    modalities: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Any = None
    prompt_cache_options: Any = None
    moderation: Any = None
    chat_template: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
