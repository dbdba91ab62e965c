"""How one sequence is to be sampled, checked once when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from engine.request.errors import InvalidRequestError
from engine.request.grammar import Grammar

MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling settings in the vocabulary of the OpenAI API and its common extensions."""

    seed: int = 0
    max_tokens: int | None = None  # None: until the context is full
    min_tokens: int = 0
    temperature: float = 1.0  # 0 means greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 means off
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    logprobs: int | None = None  # how many alternatives a token; None means no logprobs
    prompt_logprobs: bool = False
    ignore_eos: bool = False
    grammar: Grammar | None = None  # what the whole output must match

    def __post_init__(self) -> None:
        """Raise `InvalidRequestError` naming the first field that is out of its range."""
        if self.max_tokens is not None:
            _check("max_tokens", self.max_tokens, 0, math.inf)
        _check("min_tokens", self.min_tokens, 0, math.inf)
        _check("temperature", self.temperature, 0.0, 100.0)
        _check("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check("top_k", self.top_k, 0, 2**31)
        _check("min_p", self.min_p, 0.0, 1.0)
        _check("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True)
        _check("logprobs", self.logprobs or 0, 0, MAX_LOGPROBS)
        if any(not text for text in self.stop):
            raise InvalidRequestError("stop strings must not be empty", param="stop")
        for bias in self.logit_bias.values():
            _check("logit_bias", bias, -100.0, 100.0)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        return (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
        )


def _check(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Raise unless low <= value <= high (low < value where `open_low`); NaN never passes."""
    inside = (low < value if open_low else low <= value) and value <= high
    if not inside:
        left = "(" if open_low else "["
        raise InvalidRequestError(f"{name} must be in {left}{low:g}, {high:g}], got {value}", name)
