"""A torch-free engine: text from prompt, seed and position, steps as slow as you set them."""

from __future__ import annotations

import os
import signal
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.request.errors import InvalidRequestError
from engine.request.options import NO_OPTIONS, GenerationOptions
from engine.request.outputs import FinishReason, SequenceSummary, StepOutput, TokenLogprobs
from engine.request.sampling_params import SamplingParams
from tests.fake_pages import FakePages, page_metrics

POISON = "boom"  # a prompt with this word makes every step fail while its sequence is there
LETHAL = "drop dead"  # a prompt with these words ends the process in its second step, by SIGKILL
LETTERS = b"abcdefghijklmnopqrstuvwxyz      "


class FakeTokenizer:
    """One token, one byte."""

    def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])

    def describe(self) -> dict[str, Any]:
        return {"eos_token": "\0", "chat_template": None}

    def encode_continuation(self, text: str, param: str) -> list[int]:
        return self.encode(text)

    tool_syntax = ""

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        *,
        tools: list[dict[str, Any]] | None = None,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        turns = "".join(f"<{message['role']}>{message['content']}\n" for message in messages)
        return self.encode(turns + "<assistant>")

    def decode(self, token_ids: Sequence[int]) -> str:
        known = [token for token in token_ids if token < 256]
        return bytes(known).decode(errors="replace")


@dataclass
class FakeSequence:
    sequence_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    prompt_index: int
    choice: int
    max_tokens: int
    mode: str = "deer"
    options: GenerationOptions = NO_OPTIONS
    cache_salt: str = ""
    model: str = "fake"
    output: list[int] = field(default_factory=list)
    num_steps: int = 0

    def next_token(self) -> int:
        """Return what follows: it depends on prefix, seed and position, and on nothing else."""
        prefix = self.model.encode() + bytes(self.prompt_token_ids + self.output)
        key = f"{self.params.seed}:{self.prompt_index}:{self.choice}:{len(self.output)}:"
        return LETTERS[zlib.crc32(key.encode() + prefix) % len(LETTERS)]


class FakeEngine:
    """`worker.engine_port.EnginePort` without a model."""

    def __init__(
        self,
        *,
        step_s: float = 0.0,
        tokens_per_step: int = 1,
        max_batch_size: int = 8,
        max_model_len: int = 4096,
        model_name: str = "fake",
    ) -> None:
        self.model_name = model_name
        self.max_model_len = max_model_len
        self.max_batch_size = max_batch_size
        self.modes: tuple[str, ...] = ("ar", "deer")
        self.fingerprint = f"{model_name}-1"
        self.tokenizer = FakeTokenizer()
        self.num_steps = 0
        self._step_s = step_s
        self._tokens_per_step = tokens_per_step
        self._sequences: dict[str, FakeSequence] = {}
        self._pages = FakePages(num_pages=max_batch_size * max_model_len // 16 + 1)

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    @property
    def running(self) -> list[FakeSequence]:
        return list(self._sequences.values())[: self.max_batch_size]

    @property
    def num_running(self) -> int:
        return min(len(self._sequences), self.max_batch_size)

    @property
    def num_waiting(self) -> int:
        return len(self._sequences) - self.num_running

    def make_sequence(
        self,
        sequence_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        prompt_index: int = 0,
        choice: int = 0,
        mode: str | None = None,
        options: GenerationOptions = NO_OPTIONS,
        cache_salt: str = "",
        replay: Sequence[int] = (),
    ) -> FakeSequence:
        if mode is not None and mode not in self.modes:
            raise InvalidRequestError(f"unknown mode {mode!r}", "mode", "unknown_mode")
        room = self.max_model_len - len(prompt_token_ids)
        if room < (params.max_tokens or 1):
            raise InvalidRequestError("the prompt is too long", "prompt", "context_length_exceeded")
        return FakeSequence(
            sequence_id=sequence_id,
            prompt_token_ids=prompt_token_ids,
            params=params,
            prompt_index=prompt_index,
            choice=choice,
            max_tokens=room if params.max_tokens is None else params.max_tokens,
            mode=mode or "deer",
            options=options,
            cache_salt=cache_salt,
            model=self.model_name,
            output=list(replay),
        )

    def add(self, sequence: FakeSequence) -> None:
        self._sequences[sequence.sequence_id] = sequence

    def abort(self, sequence_id: str) -> None:
        self._sequences.pop(sequence_id, None)
        self._pages.release(sequence_id)

    def step(self) -> list[StepOutput]:
        running = self.running
        self.num_steps += 1
        time.sleep(self._step_s)
        if any(LETHAL in self._prompt_of(seq) and seq.num_steps for seq in running):
            os.kill(os.getpid(), signal.SIGKILL)
        if any(POISON in self._prompt_of(seq) for seq in running):
            raise RuntimeError("the fake engine was told to fail")
        return [self._advance(seq) for seq in running]

    def metrics(self) -> dict[str, float]:
        pages = page_metrics(self._pages.pool, is_idle=not self._sequences)
        return {"fake_sequences": float(len(self._sequences)), **pages}

    def _prompt_of(self, seq: FakeSequence) -> str:
        return self.tokenizer.decode(seq.prompt_token_ids)

    def _advance(self, seq: FakeSequence) -> StepOutput:
        first = seq.num_steps == 0
        seq.num_steps += 1
        new: list[int] = []
        while len(new) < self._tokens_per_step and len(seq.output) < seq.max_tokens:
            token = seq.next_token()
            seq.output.append(token)
            new.append(token)
            if token in seq.params.stop_token_ids:
                break
        self._pages.grow(seq.sequence_id, len(seq.prompt_token_ids) + len(seq.output))
        reason = _finish_reason(seq)
        if reason is not None:
            self.abort(seq.sequence_id)
        return StepOutput(
            sequence_id=seq.sequence_id,
            token_ids=tuple(new),
            text=self.tokenizer.decode(new),
            logprobs=None if seq.params.logprobs is None else _logprobs(new),
            prompt_logprobs=_prompt_logprobs(seq) if first and seq.params.prompt_logprobs else None,
            finish_reason=reason,
            summary=None if reason is None else finished_summary(seq),
        )


def _finish_reason(seq: FakeSequence) -> FinishReason | None:
    if seq.output and seq.output[-1] in seq.params.stop_token_ids:
        return FinishReason.STOP
    return FinishReason.LENGTH if len(seq.output) >= seq.max_tokens else None


def finished_summary(seq: FakeSequence) -> SequenceSummary:
    return SequenceSummary(
        num_prompt_tokens=len(seq.prompt_token_ids),
        num_output_tokens=len(seq.output),
        num_cached_tokens=1,
        num_draft_tokens=2 * seq.num_steps,
        acceptance_histogram=(0, seq.num_steps),
        num_forwards=seq.num_steps,
        is_lossless=seq.options.skip_verify_confidence is None,
        num_predicted_tokens=len(seq.options.prediction),
        num_predicted_accepted=len(seq.options.prediction) // 2,
        holes=_holes(seq),
    )


def _logprobs(token_ids: list[int]) -> tuple[TokenLogprobs, ...]:
    return tuple(
        TokenLogprobs(token, bytes([token]), -0.5, ((token, bytes([token]), -0.5),))
        for token in token_ids
    )


def _prompt_logprobs(seq: FakeSequence) -> tuple[TokenLogprobs, ...]:
    first, *rest = seq.prompt_token_ids
    return (TokenLogprobs(first, bytes([first]), None), *_logprobs(rest))


def _holes(seq: FakeSequence) -> tuple[str, ...]:
    """All in the first hole; nothing where the text has but one."""
    num_holes = len(seq.options.suffixes)
    text = bytes(seq.output).decode()
    return (text, *[""] * (num_holes - 1)) if num_holes > 1 else ()
