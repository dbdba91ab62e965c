"""Every message that crosses Redis between the API and a worker.

The schema only ever grows: a new field has a default, a field never changes its type, and unknown
fields are skipped, so that API and workers of neighbouring versions understand each other.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

WIRE_VERSION = 1


class ToolCall(Struct, frozen=True, omit_defaults=True):
    """A call that the assistant made in an earlier turn; `arguments` is JSON, as it wrote it."""

    id: str
    name: str
    arguments: str


class ChatMessage(Struct, frozen=True, omit_defaults=True):
    role: str
    content: str
    name: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    tool_call_id: str | None = None  # role "tool": which call it answers


class Prompts(Struct, frozen=True, tag="prompts", omit_defaults=True):
    """Input of a text completion: one or more prompts, each text or token ids."""

    prompts: list[str | list[int]]
    echo: bool = False


class Tools(Struct, frozen=True, omit_defaults=True):
    """The functions that an answer may call, and how its text says so."""

    definitions: list[dict[str, Any]]  # as the chat template takes them
    syntax: str  # of the model's calls, see `ModelInfo.tool_syntax`
    forced: str = ""  # the one function that must be called


class Chat(Struct, frozen=True, tag="chat", omit_defaults=True):
    """Input of a chat completion; the worker renders the chat template."""

    messages: list[ChatMessage]
    tools: Tools | None = None
    template_variables: dict[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class Grammar(Struct, frozen=True, omit_defaults=True):
    """What the whole output must match; `param` names the request's field that it came from."""

    kind: str  # "json" | "regex" | "choice" | "grammar"
    definition: str  # a JSON schema, a regular expression, a JSON list of strings, a grammar
    param: str = "grammar"


class Sampling(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to generate. The seed is always set: the API draws one where the client gave none."""

    seed: int
    max_tokens: int | None = None  # None: as many as the context has room for
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    logprobs: int | None = None  # how many alternatives a token; None: no logprobs at all
    ignore_eos: bool = False
    grammar: Grammar | None = None


class Options(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Knobs of the ways of generating; None leaves a choice to the worker."""

    denoising_steps: int | None = None
    block_length: int | None = None
    confidence_threshold: float | None = None
    unmasking_factor: float | None = None
    remasking: str | None = None
    canvas_cache: str | None = None
    acceptance: str | None = None  # "coupled" | "rejection"
    skip_verify_confidence: float | None = None
    apd_mix_weight: float | None = None
    apd_lookahead: int | None = None
    apd_window: int | None = None
    apd_max_parallel: int | None = None
    apd_threshold: float | None = None
    prediction: str = ""  # the answer that the client expects
    suffixes: list[str] = field(default_factory=list)  # what follows each hole to be filled
    shows_steps: bool = False  # deltas carry traces


class GenerateJob(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request. Travels as the msgpack field `dfl` of the RQ job hash."""

    v: int = WIRE_VERSION
    job_id: str
    api_id: str
    """Names the reply channel `dfl:api:<api_id>`."""
    model: str
    tenant: str
    """Whose request this is (a hash of the API key): parts the prefix cache."""
    created: float
    """Unix time in seconds."""
    input: Prompts | Chat
    sampling: Sampling
    n: int = 1
    stream: bool = False
    mode: str | None = None  # None: the worker's default strategy
    draft_length: int | None = None  # None: the planner decides; 0: no draft
    timeout_s: float | None = None
    cache_salt: str = ""
    options: Options | None = None
    trace_context: dict[str, str] = field(default_factory=dict)
    """W3C headers of the span that asked for this job; empty where nobody traces."""


class TokenLogprob(Struct, frozen=True, array_like=True, gc=False):
    """Log-probability of one token, and of its most probable rivals."""

    token_id: int
    token: bytes
    logprob: float | None  # None: the first token of a prompt has no predecessor
    top: list[tuple[int, bytes, float]] = field(default_factory=list)


class Usage(Struct, frozen=True, array_like=True):
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int


class DraftStats(Struct, frozen=True, array_like=True):
    """Speculation over all verify steps of a job: `histogram[j]` steps accepted j draft tokens."""

    num_draft_tokens: int
    histogram: list[int]


class GenerationStats(Struct, frozen=True, array_like=True):
    """How a job's choices came about."""

    mode: str
    is_lossless: bool  # whether the output, or its distribution, is that of the verifier alone
    num_forwards: int  # of any model, over all choices; a batch shares them


class Timing(Struct, frozen=True, array_like=True):
    """Seconds of the attempt that finished the job, by the worker's clock."""

    queue_s: float  # until the worker took it, earlier attempts included
    prefill_s: float  # from then until the first token
    decode_s: float  # from then until the end


class PredictionStats(Struct, frozen=True, array_like=True):
    """Of the tokens that the client predicted, those that were tried."""

    num_accepted: int
    num_rejected: int


class Accepted(Struct, frozen=True, array_like=True, tag="accepted"):
    """The worker has checked the request and will generate."""

    job_id: str
    num_prompt_tokens: int


class Rejected(Struct, frozen=True, array_like=True, tag="rejected"):
    """The request itself is wrong: nothing was generated and a retry would not help."""

    job_id: str
    status: int  # HTTP status
    message: str
    param: str | None = None
    code: str | None = None


class Trace(Struct, frozen=True, array_like=True, gc=False):
    """How a step went, where the request asks for it; nothing of it is output."""

    drafted: list[str] = field(default_factory=list)  # tokens that the verifier was shown
    num_accepted: int = 0
    pending: str = ""  # follows the text so far: revealed, not committed; masks as MASK
    progress: float = 0.0  # share of the tokens that are revealed


MASK = "\u2591"


class Delta(Struct, frozen=True, array_like=True, tag="delta", gc=False):
    """New text of one choice. `index` counts a job's deltas from 0, so a reader sees a gap."""

    job_id: str
    index: int
    choice: int  # prompt index * n + choice
    token_ids: list[int]
    text: str
    finish_reason: str | None = None  # "stop" | "length", on the choice's last delta
    logprobs: list[TokenLogprob] | None = None
    holes: list[str] | None = None  # the text of each hole, on the last delta of a filled-in text
    trace: Trace | None = None


class Finished(Struct, frozen=True, array_like=True, tag="finished"):
    """All choices have ended. `num_deltas` lets a reader notice that it misses one."""

    job_id: str
    num_deltas: int
    usage: Usage
    draft: DraftStats | None = None
    attempt: int = 1
    generation: GenerationStats | None = None
    prediction: PredictionStats | None = None  # where the client gave one
    timing: Timing | None = None


class Failed(Struct, frozen=True, array_like=True, tag="failed"):
    """The job ended without a full answer; the client did nothing wrong (or cancelled it)."""

    job_id: str
    status: int
    message: str
    code: str | None = None  # "timeout" | "cancelled" | "worker_lost" | "engine_error"


class Answered(Struct, frozen=True, array_like=True, tag="answered"):
    """A worker's answer to a question (`worker.wire.questions`), with what that asked for."""

    job_id: str  # the question's id: an answer is found like any other event
    token_ids: list[int] = field(default_factory=list)
    pieces: list[str] | None = None
    text: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


Event = Accepted | Rejected | Delta | Finished | Failed | Answered


class Frame(Struct, frozen=True, array_like=True):
    """One publish: everything that one engine step has for one API process."""

    worker: str
    events: list[Event]


class LogEntry(Struct, frozen=True, array_like=True):
    """One entry of a job's log, the durable twin of its deltas; its id is `<last index + 1>-0`."""

    deltas: list[Delta]


class ModelInfo(Struct, frozen=True, omit_defaults=True):
    """What a worker offers under one model name."""

    name: str
    max_model_len: int
    modes: list[str]
    created: int
    fingerprint: str
    tool_syntax: str = ""  # "hermes"; "": none that is known here


class WorkerInfo(Struct, frozen=True, omit_defaults=True):
    """A worker's own words about itself, renewed at each beat."""

    name: str
    model: ModelInfo
    max_batch_size: int
    num_running: int = 0
    num_waiting: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    is_draining: bool = False  # it finishes what it has, and takes nothing new
