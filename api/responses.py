"""Response bodies and stream chunks, in OpenAI's shape."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType, field

from worker.wire.messages import DraftStats, Finished, GenerationStats, PredictionStats


class PromptTokensDetails(Struct, frozen=True):
    cached_tokens: int


class CompletionTokensDetails(Struct, frozen=True, kw_only=True):
    """What became of the tokens of a `prediction`, of those that were tried."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class UsageBody(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | UnsetType = UNSET  # known at the end
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET


class SpeculativeDecoding(Struct, frozen=True, kw_only=True):
    """How drafting went: `acceptance_histogram[j]` verify steps accepted j draft tokens."""

    mean_acceptance_length: float
    draft_acceptance_rate: float
    acceptance_histogram: list[int]
    num_spec_steps: int
    num_accepted_draft_tokens: int
    num_draft_tokens: int


class GenerationBody(Struct, frozen=True, kw_only=True):
    """How the output came about: `lossless` promises the tokens, or the distribution, of `ar`."""

    mode: str
    lossless: bool
    num_forwards: int


class MetricsBody(Struct, frozen=True, kw_only=True):
    speculative_decoding: SpeculativeDecoding | UnsetType = UNSET
    generation: GenerationBody | UnsetType = UNSET


class DraftEvent(Struct, frozen=True, kw_only=True):
    """One verify step: of the drafted tokens the first `num_accepted` stand, then comes another."""

    choice: int
    drafted: list[str]
    num_accepted: int


class DiffusionMeta(Struct, frozen=True, kw_only=True):
    """Mercury's: the chunk's text replaces what the client has; `progress` is from 0 to 1."""

    diffusion_content: bool = True
    diffusion_progress: float


class TopLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    content: list[ChatTokenLogprob]
    refusal: None = None


class TextLogprobs(Struct, frozen=True):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class FunctionCall(Struct, frozen=True):
    name: str
    arguments: str


class ToolCallBody(Struct, frozen=True):
    id: str
    function: FunctionCall
    type: str = "function"


class AssistantMessage(Struct, frozen=True):
    content: str | None
    role: str = "assistant"
    refusal: None = None
    tool_calls: list[ToolCallBody] | UnsetType = UNSET


class ChatChoice(Struct, frozen=True, kw_only=True):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct, frozen=True, kw_only=True):
    """Answer of POST /v1/chat/completions."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: UsageBody
    metrics: MetricsBody | UnsetType = UNSET
    service_tier: str | UnsetType = UNSET


class TextChoice(Struct, frozen=True, kw_only=True):
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | UnsetType = UNSET
    holes: list[str] | UnsetType = UNSET


class Completion(Struct, kw_only=True):
    """Answer of POST /v1/completions, and each chunk of its stream."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: UsageBody | UnsetType | None = UNSET
    metrics: MetricsBody | UnsetType = UNSET
    service_tier: str | UnsetType = UNSET
    obfuscation: str | UnsetType = UNSET
    draft_events: list[DraftEvent] | UnsetType = UNSET
    diffusion_meta: DiffusionMeta | UnsetType = UNSET


class FunctionCallDelta(Struct, frozen=True, kw_only=True):
    name: str | UnsetType = UNSET
    arguments: str


class ToolCallDelta(Struct, frozen=True, kw_only=True):
    """A piece of a call; the first names it."""

    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: FunctionCallDelta


class ChatDelta(Struct, frozen=True, kw_only=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(Struct, frozen=True, kw_only=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(Struct, kw_only=True):
    """One event of a chat completion's stream."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: UsageBody | UnsetType | None = UNSET
    metrics: MetricsBody | UnsetType = UNSET
    service_tier: str | UnsetType = UNSET
    obfuscation: str | UnsetType = UNSET
    draft_events: list[DraftEvent] | UnsetType = UNSET
    diffusion_meta: DiffusionMeta | UnsetType = UNSET


class ModelBody(Struct, frozen=True, kw_only=True):
    id: str
    object: str = "model"
    created: int
    owned_by: str = "dfastllm"
    max_model_len: int
    modes: list[str]


class ModelList(Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: list[ModelBody] = field(default_factory=list)


def usage_body(finished: Finished) -> UsageBody:
    usage = finished.usage
    return UsageBody(
        prompt_tokens=usage.num_prompt_tokens,
        completion_tokens=usage.num_output_tokens,
        total_tokens=usage.num_prompt_tokens + usage.num_output_tokens,
        prompt_tokens_details=PromptTokensDetails(usage.num_cached_tokens),
        completion_tokens_details=_predicted(finished.prediction),
    )


def metrics_body(finished: Finished) -> MetricsBody | UnsetType:
    """Return how it was generated, with draft statistics where something was drafted."""
    if finished.draft is None and finished.generation is None:
        return UNSET
    return MetricsBody(
        speculative_decoding=UNSET if finished.draft is None else _speculation(finished.draft),
        generation=_generation(finished.generation),
    )


def _predicted(prediction: PredictionStats | None) -> CompletionTokensDetails | UnsetType:
    if prediction is None:
        return UNSET
    return CompletionTokensDetails(
        accepted_prediction_tokens=prediction.num_accepted,
        rejected_prediction_tokens=prediction.num_rejected,
    )


def _generation(stats: GenerationStats | None) -> GenerationBody | UnsetType:
    """Return nothing for a worker of an earlier version, which does not say it."""
    if stats is None:
        return UNSET
    return GenerationBody(
        mode=stats.mode, lossless=stats.is_lossless, num_forwards=stats.num_forwards
    )


def _speculation(draft: DraftStats) -> SpeculativeDecoding:
    num_steps = sum(draft.histogram)
    num_accepted = sum(j * steps for j, steps in enumerate(draft.histogram))
    return SpeculativeDecoding(
        mean_acceptance_length=1 + num_accepted / num_steps if num_steps else 1.0,
        draft_acceptance_rate=num_accepted / draft.num_draft_tokens
        if draft.num_draft_tokens
        else 0,
        acceptance_histogram=draft.histogram,
        num_spec_steps=num_steps,
        num_accepted_draft_tokens=num_accepted,
        num_draft_tokens=draft.num_draft_tokens,
    )
