"""What leaves the engine: frozen results of one step."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability of a token and of the `top` most probable ones at its position."""

    token_id: int
    token: bytes
    logprob: float | None  # None for the first prompt token: nothing came before it
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class SequenceSummary:
    """What one sequence cost and gained, known when it ends."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    num_draft_tokens: int
    acceptance_histogram: tuple[int, ...]
    """`acceptance_histogram[j]`: verify steps that accepted exactly j draft tokens."""
    num_forwards: int = 0
    """Forwards of any model that had rows of this sequence (nfe); a batch shares them."""
    hole_lengths: tuple[int, ...] = ()
    """Of a text that was filled in: how many of the output tokens each hole has, in order."""
    is_lossless: bool = True
    """Whether mode and options promise the output (or its distribution) of the verifier alone."""
    num_predicted_tokens: int = 0
    """Of the draft tokens: those of the client's own prediction."""
    num_predicted_accepted: int = 0
    holes: tuple[str, ...] = ()
    """The text of each hole, where there are several."""


@dataclass(frozen=True, slots=True)
class Ending:
    """A strategy's word that a sequence has ended, though no token of it says so."""

    reason: FinishReason
    hole_lengths: tuple[int, ...] = ()


class StepTrace(NamedTuple):
    """How a step went, for those who want to see it; nothing of it is output."""

    drafted: tuple[int, ...] = ()  # what the verifier was shown
    num_accepted: int = 0
    pending: tuple[int | None, ...] = ()
    """After the output so far: tokens that are revealed but not committed, None for a mask."""


class StepOutput(NamedTuple):
    """What one sequence gained in one step."""

    sequence_id: str
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    summary: SequenceSummary | None = None  # set with finish_reason
    trace: StepTrace | None = None  # where the options ask for it
