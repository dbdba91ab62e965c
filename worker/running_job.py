"""A job while it runs here: its choices, their sequences, and the numbering of its deltas."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.request.options import GenerationOptions
from engine.request.outputs import FinishReason, SequenceSummary, StepOutput, StepTrace
from engine.request.sampling_params import SamplingParams
from worker.engine_port import EnginePort, EngineSequence
from worker.job_store import Claim
from worker.translate import (
    LoggedChoice,
    Prompt,
    draft_stats,
    generation_options,
    generation_stats,
    logged_choices,
    prediction_stats,
    prompts_of,
    sampling_params,
    sequence_of,
    wire_logprobs,
    wire_trace,
)
from worker.wire.messages import (
    Accepted,
    Delta,
    Finished,
    GenerateJob,
    Timing,
    TokenLogprob,
    Trace,
    Usage,
)

# Of a job that nobody streams no one reads single tokens: fewer, longer deltas cost less.
UNSTREAMED_DELTA_TOKENS = 8
SNAPSHOT_S = 0.04  # more than 25 pictures a second nobody sees


@dataclass(slots=True)
class Choice:
    """One answer in the making; what is pending goes out with the next delta."""

    number: int
    sequence: EngineSequence | None  # None: an earlier attempt finished it
    num_logged_tokens: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    summary: SequenceSummary | None = None
    num_new_tokens: int = 0  # of this attempt
    finish_reason: str | None = None
    trace: Trace | None = None
    shown_at: float = 0.0  # when the last trace went out, by the monotonic clock

    @property
    def is_finished(self) -> bool:
        return self.sequence is None or self.summary is not None

    def absorb(self, output: StepOutput) -> None:
        self.text += output.text
        self.token_ids.extend(output.token_ids)
        self.num_new_tokens += len(output.token_ids)
        self.summary = output.summary or self.summary
        for logprobs in (output.prompt_logprobs, output.logprobs):
            if logprobs is not None:
                self.logprobs = [*(self.logprobs or []), *wire_logprobs(logprobs)]

    def delta(self, job_id: str, index: int, reason: FinishReason | None) -> Delta:
        finish_reason = self.finish_reason = None if reason is None else reason.value
        holes = list(self.summary.holes) if self.summary is not None else []
        delta = Delta(
            job_id,
            index,
            self.number,
            self.token_ids,
            self.text,
            finish_reason,
            self.logprobs,
            holes or None,
            self.trace,
        )
        self.text, self.token_ids, self.logprobs, self.trace = "", [], None, None
        return delta


class RunningJob:
    """Turns a claim into sequences, and what they gain into deltas without a hole or a double."""

    def __init__(self, claim: Claim, engine: EnginePort) -> None:
        """Raise InvalidRequestError, before anything runs, if any choice of the job is wrong."""
        self.claim = claim
        self.job = claim.job
        self.job_id = claim.job.job_id
        self.has_ended = False
        self.claimed_at = time.time()
        self.first_token_at: float | None = None  # of this attempt
        self._delta_tokens = _delta_tokens(self.job)
        self._next_index = max((delta.index + 1 for delta in claim.deltas), default=0)
        self._tokenizer = engine.tokenizer
        self._prompts = prompts_of(self.job, engine.tokenizer)
        self._choices = self._make_choices(engine)
        self._by_sequence = {
            choice.sequence.sequence_id: choice for choice in self._choices if choice.sequence
        }

    @property
    def sequences(self) -> list[EngineSequence]:
        return [choice.sequence for choice in self._choices if choice.sequence is not None]

    @property
    def is_finished(self) -> bool:
        return all(choice.is_finished for choice in self._choices)

    @property
    def deadline(self) -> float:
        """Monotonic time at which the job has taken long enough, in the queue and here."""
        return self.claim.deadline

    def accepted(self) -> Accepted:
        return Accepted(self.job_id, self._num_prompt_tokens)

    def take(self, outputs: Sequence[StepOutput]) -> list[Delta]:
        """Absorb what one sequence gained in some steps; return what there is to send.

        To a stream that is all, as one delta where nobody wants to see the steps.
        """
        choice = self._by_sequence[outputs[0].sequence_id]
        deltas = []
        for output in outputs:
            self._absorb(choice, output)
            is_ripe = len(choice.token_ids) >= self._delta_tokens or choice.trace is not None
            if output.finish_reason is not None or is_ripe:
                deltas.append(self._send(choice, output.finish_reason))
        if choice.token_ids and self.job.stream:
            deltas.append(self._send(choice, None))
        return deltas

    def _absorb(self, choice: Choice, output: StepOutput) -> None:
        choice.absorb(output)
        if self.first_token_at is None and output.token_ids:
            self.first_token_at = time.time()
        if output.trace is not None and self.job.stream:
            self._show(choice, output.trace)

    def _show(self, choice: Choice, trace: StepTrace) -> None:
        """Take a step's trace into the next delta; of mere snapshots not more than can be seen."""
        now = time.monotonic()
        if not trace.drafted and not choice.token_ids and now < choice.shown_at + SNAPSHOT_S:
            return
        choice.shown_at = now
        num_output = choice.num_logged_tokens + choice.num_new_tokens
        choice.trace = wire_trace(trace, num_output, self.job.sampling.max_tokens, self._tokenizer)

    def flush(self) -> list[Delta]:
        """Return what is still pending, so that whoever goes on need not make it again."""
        return [self._send(choice, None) for choice in self._choices if choice.token_ids]

    def finished(self) -> Finished:
        summaries = [choice.summary for choice in self._choices if choice.summary is not None]
        return Finished(
            self.job_id,
            self._next_index,
            Usage(self._num_prompt_tokens, self._num_output_tokens, self._num_cached_tokens),
            draft_stats(summaries),
            self.claim.attempt,
            generation_stats(self._mode, summaries),
            prediction_stats(self.job, summaries),
            self._timing(time.time()),
        )

    @property
    def finish_reasons(self) -> list[str]:
        """Why each choice has ended, those that an earlier attempt finished among them."""
        logged = {delta.choice: delta.finish_reason for delta in self.claim.deltas}
        reasons = (choice.finish_reason or logged.get(choice.number) for choice in self._choices)
        return [reason for reason in reasons if reason is not None]

    def _timing(self, now: float) -> Timing:
        first_token_at = self.first_token_at or now
        # Clocks differ between hosts, and are set while the job runs.
        return Timing(
            max(0.0, self.claimed_at - self.job.created),
            max(0.0, first_token_at - self.claimed_at),
            max(0.0, now - first_token_at),
        )

    @property
    def _mode(self) -> str:
        return next((sequence.mode for sequence in self.sequences), self.job.mode or "")

    @property
    def _num_prompt_tokens(self) -> int:
        return sum(len(prompt.token_ids) for prompt in self._prompts)

    @property
    def _num_output_tokens(self) -> int:
        return sum(
            choice.num_logged_tokens if choice.summary is None else choice.summary.num_output_tokens
            for choice in self._choices
        )

    @property
    def _num_cached_tokens(self) -> int:
        """Of the n choices of a prompt the first counts: the prompt is billed once as well."""
        first_choices = self._choices[:: self.job.n]
        return sum(choice.summary.num_cached_tokens for choice in first_choices if choice.summary)

    def _make_choices(self, engine: EnginePort) -> list[Choice]:
        params = sampling_params(self.job)
        options = generation_options(self.job, engine.tokenizer)
        logged = logged_choices(self.claim.deltas)
        choices = []
        for number, (prompt, _) in enumerate(itertools.product(self._prompts, range(self.job.n))):
            sent = logged.get(number)
            sequence = None
            if sent is None or not sent.is_finished:
                sequence = self._make_sequence(engine, prompt, number, params, options, sent)
            choices.append(_choice(number, sequence, prompt, sent))
        return choices

    def _make_sequence(
        self,
        engine: EnginePort,
        prompt: Prompt,
        number: int,
        params: SamplingParams,
        options: GenerationOptions,
        sent: LoggedChoice | None,
    ) -> EngineSequence:
        name = self._sequence_id(number)
        if sent is None:
            return sequence_of(engine, self.job, name, prompt, number, params, options, [])
        # The prompt's logprobs went out with the first delta; nobody wants them twice.
        params = dataclasses.replace(params, prompt_logprobs=False)
        return sequence_of(engine, self.job, name, prompt, number, params, options, sent.token_ids)

    def _sequence_id(self, number: int) -> str:
        # With the execution: a job can come back here while output of its last run is on its way.
        return f"{self.job_id}:{number}:{self.claim.execution_id}"

    def _send(self, choice: Choice, reason: FinishReason | None) -> Delta:
        delta = choice.delta(self.job_id, self._next_index, reason)
        self._next_index += 1
        return delta


def _delta_tokens(job: GenerateJob) -> int:
    """Return with how many tokens a delta is full."""
    if not job.stream:
        return UNSTREAMED_DELTA_TOKENS
    shows_steps = job.options is not None and job.options.shows_steps
    return 1 if shows_steps else sys.maxsize


def _choice(
    number: int, sequence: EngineSequence | None, prompt: Prompt, logged: LoggedChoice | None
) -> Choice:
    """Make a choice whose first delta echoes the prompt, unless the log has that delta already."""
    if logged is not None:
        return Choice(number, sequence, len(logged.token_ids))
    return Choice(number, sequence, 0, text=prompt.echo_text or "")
