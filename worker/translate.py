"""The one place where wire and engine meet: jobs to sequences, step outputs to events."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from engine.request.errors import InvalidRequestError
from engine.request.grammar import Grammar, GrammarKind
from engine.request.options import Acceptance, CanvasCache, GenerationOptions, Remasking
from engine.request.outputs import SequenceSummary, StepTrace, TokenLogprobs
from engine.request.sampling_params import SamplingParams
from worker.chat_prompt import chat_prompt
from worker.engine_port import EnginePort, EngineSequence, TokenizerPort
from worker.wire.messages import (
    MASK,
    Chat,
    Delta,
    DraftStats,
    GenerateJob,
    GenerationStats,
    Options,
    PredictionStats,
    Prompts,
    Rejected,
    TokenLogprob,
    Trace,
)

_WORDS: dict[str, type[StrEnum]] = {
    "remasking": Remasking,
    "canvas_cache": CanvasCache,
    "acceptance": Acceptance,
}
_PLAIN_OPTIONS = set(Options.__struct_fields__) - {*_WORDS, "prediction", "suffixes"}
# Where the engine's name of a field is not the client's.
_CLIENT_NAMES = {"suffixes": "suffix"}


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as the engine takes it, and as text where the client wants it echoed."""

    token_ids: list[int]
    echo_text: str | None = None


def prompts_of(job: GenerateJob, tokenizer: TokenizerPort) -> list[Prompt]:
    """Tokenize a job's input; a chat is one prompt."""
    match job.input:
        case Chat():
            return [Prompt(chat_prompt(job.input, tokenizer))]
        case Prompts(prompts=prompts, echo=echo):
            return [_prompt(prompt, echo, tokenizer) for prompt in prompts]


def sampling_params(job: GenerateJob) -> SamplingParams:
    """Return the engine's form of a job's sampling settings; raises InvalidRequestError."""
    values = msgspec.structs.asdict(job.sampling)
    values["stop"] = tuple(job.sampling.stop)
    values["stop_token_ids"] = tuple(job.sampling.stop_token_ids)
    values["grammar"] = _grammar(job)
    return SamplingParams(**values, prompt_logprobs=_wants_prompt_logprobs(job))


def generation_options(job: GenerateJob, tokenizer: TokenizerPort) -> GenerationOptions:
    """Return the engine's form of a job's knobs; raises InvalidRequestError."""
    given = job.options or Options()
    values: dict[str, Any] = {
        name: value for name in _PLAIN_OPTIONS if (value := getattr(given, name)) is not None
    }
    for name, words in _WORDS.items():
        if (word := getattr(given, name)) is not None:
            values[name] = _known_word(name, word, words)
    return GenerationOptions(
        **values,
        draft_length=job.draft_length,
        prediction=tuple(tokenizer.encode_continuation(given.prediction, "prediction")),
        suffixes=tuple(
            tuple(tokenizer.encode_continuation(suffix, "suffix")) for suffix in given.suffixes
        ),
    )


def sequence_of(
    engine: EnginePort,
    job: GenerateJob,
    sequence_id: str,
    prompt: Prompt,
    choice: int,
    params: SamplingParams,
    options: GenerationOptions,
    replay: list[int],
) -> EngineSequence:
    """Build the sequence of one choice (numbered `prompt index * n + choice`)."""
    return engine.make_sequence(
        sequence_id,
        prompt.token_ids,
        params,
        prompt_index=choice // job.n,
        choice=choice % job.n,
        mode=job.mode,
        options=options,
        cache_salt=_cache_salt(job),
        replay=replay,
    )


def rejection(job_id: str, error: InvalidRequestError) -> Rejected:
    param = _CLIENT_NAMES.get(error.param or "", error.param)
    return Rejected(job_id, 400, error.message, param, error.code)


def wire_logprobs(logprobs: Iterable[TokenLogprobs]) -> list[TokenLogprob]:
    return [TokenLogprob(one.token_id, one.token, one.logprob, list(one.top)) for one in logprobs]


def wire_trace(
    trace: StepTrace, num_output: int, max_tokens: int | None, tokenizer: TokenizerPort
) -> Trace:
    """Write a step's trace as text; `num_output` tokens were committed up to its end."""
    num_revealed = num_output + sum(token_id is not None for token_id in trace.pending)
    whole = max(max_tokens or 0, num_output + len(trace.pending), 1)
    return Trace(
        [tokenizer.decode([token_id]) for token_id in trace.drafted],
        trace.num_accepted,
        _pending_text(trace.pending, tokenizer),
        num_revealed / whole,
    )


def draft_stats(summaries: list[SequenceSummary]) -> DraftStats | None:
    """Sum up the speculation of a job's sequences; None where nothing was drafted."""
    if not any(summary.num_draft_tokens for summary in summaries):
        return None
    histogram = [0] * max(len(summary.acceptance_histogram) for summary in summaries)
    for summary in summaries:
        for accepted, num_steps in enumerate(summary.acceptance_histogram):
            histogram[accepted] += num_steps
    return DraftStats(sum(summary.num_draft_tokens for summary in summaries), histogram)


def generation_stats(mode: str, summaries: list[SequenceSummary]) -> GenerationStats | None:
    """Say how a job was generated; None where an earlier attempt had done it all."""
    if not summaries:
        return None
    is_lossless = all(summary.is_lossless for summary in summaries)
    return GenerationStats(mode, is_lossless, sum(summary.num_forwards for summary in summaries))


def prediction_stats(job: GenerateJob, summaries: list[SequenceSummary]) -> PredictionStats | None:
    """Sum up what became of a job's prediction; None where it has none."""
    if job.options is None or not job.options.prediction:
        return None
    num_tried = sum(summary.num_predicted_tokens for summary in summaries)
    num_accepted = sum(summary.num_predicted_accepted for summary in summaries)
    return PredictionStats(num_accepted, num_tried - num_accepted)


@dataclass(slots=True)
class LoggedChoice:
    """What an earlier attempt already sent of one choice."""

    token_ids: list[int]
    is_finished: bool = False


def logged_choices(deltas: Iterable[Delta]) -> dict[int, LoggedChoice]:
    """Rebuild from the log how far each choice had come before its worker died."""
    choices: dict[int, LoggedChoice] = {}
    for delta in deltas:
        logged = choices.setdefault(delta.choice, LoggedChoice([]))
        logged.token_ids.extend(delta.token_ids)
        logged.is_finished = logged.is_finished or delta.finish_reason is not None
    return choices


def _grammar(job: GenerateJob) -> Grammar | None:
    given = job.sampling.grammar
    if given is None:
        return None
    if given.kind not in set(GrammarKind):
        message = f"this worker knows no grammar of kind {given.kind!r}"
        raise InvalidRequestError(message, given.param)
    return Grammar(GrammarKind(given.kind), given.definition, given.param)


def _pending_text(pending: Sequence[int | None], tokenizer: TokenizerPort) -> str:
    """Decode revealed tokens where they stand side by side; every mask is one character."""
    text = ""
    for is_mask, run in itertools.groupby(pending, lambda token_id: token_id is None):
        token_ids = list(run)
        known = [token_id for token_id in token_ids if token_id is not None]
        text += MASK * len(token_ids) if is_mask else tokenizer.decode(known)
    return text


def _prompt(prompt: str | list[int], echo: bool, tokenizer: TokenizerPort) -> Prompt:
    if isinstance(prompt, str):
        return Prompt(tokenizer.encode(prompt), prompt if echo else None)
    return Prompt(prompt, tokenizer.decode(prompt) if echo else None)


def _known_word(param: str, word: str, words: type[StrEnum]) -> StrEnum:
    try:
        return words(word)
    except ValueError:
        known = ", ".join(words)
        raise InvalidRequestError(f"{param} must be one of {known}", param) from None


def _wants_prompt_logprobs(job: GenerateJob) -> bool:
    echoes = isinstance(job.input, Prompts) and job.input.echo
    return echoes and job.sampling.logprobs is not None


def _cache_salt(job: GenerateJob) -> str:
    # NUL occurs in no tenant, so no client can name another tenant's part of the cache.
    return f"{job.tenant}\0{job.cache_salt}"
