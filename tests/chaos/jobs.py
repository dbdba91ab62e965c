"""What the clients of a chaos run want: hundreds of different requests, all from one seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from tests.fakes import LETHAL

FAKE_MODELS = ("fake", "fake-b")
REAL_MODEL = "dfastllm-embedded"
PRIORITIES = ("interactive", "default", "batch")
POISON_EVERY = 150
REAL_SHARE = 0.08


@dataclass(frozen=True)
class ChaosJob:
    """One request, and what its client does while it waits."""

    number: int
    model: str
    prompt: str
    seed: int
    max_tokens: int
    n: int
    temperature: float
    stream: bool
    priority: str
    is_background: bool = False  # a job of /v1/jobs
    leaves_after: int | None = None  # events; 0: before anything has come
    cancels_after: int | None = None  # events
    start_s: float = 0.0

    @property
    def is_poison(self) -> bool:
        return LETHAL in self.prompt

    @property
    def body(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": self.prompt,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "n": self.n,
            "temperature": self.temperature,
            "stream": self.stream,
            "priority": self.priority,
            "ignore_eos": True,
        }


def plan_jobs(seed: int, count: int, length_s: float, *, with_real: bool) -> list[ChaosJob]:
    """Return `count` jobs, spread over `length_s` seconds in order of their start."""
    rng = random.Random(f"jobs {seed}")
    starts = sorted(rng.uniform(0.0, length_s) for _ in range(count))
    poison_at = rng.randrange(min(20, count))
    return [
        _job(rng, number, start_s, number % POISON_EVERY == poison_at, with_real=with_real)
        for number, start_s in enumerate(starts)
    ]


def _job(
    rng: random.Random, number: int, start_s: float, is_poison: bool, *, with_real: bool
) -> ChaosJob:
    is_real = with_real and not is_poison and rng.random() < REAL_SHARE
    max_tokens = rng.choice((1, 3, 10, 40, 40, 90, 200)) if not is_real else rng.choice((4, 24, 48))
    stream = rng.random() < 0.65
    is_background = not stream and rng.random() < 0.4
    leaves, cancels = _manners(rng, max_tokens, stream)
    return ChaosJob(
        number=number,
        model=REAL_MODEL if is_real else rng.choice(FAKE_MODELS),
        prompt=_prompt(rng, number, is_real, is_poison),
        seed=rng.randrange(1 << 30),
        max_tokens=40 if is_poison else max_tokens,
        n=rng.choice((1, 1, 1, 2, 3)),
        temperature=rng.choice((0.0, 1.0)),
        stream=stream,
        priority=rng.choice(PRIORITIES),
        is_background=is_background,
        leaves_after=None if is_poison or is_background else leaves,
        cancels_after=None if is_poison else cancels,
        start_s=start_s,
    )


def _manners(rng: random.Random, max_tokens: int, stream: bool) -> tuple[int | None, int | None]:
    """Pick when the client leaves or cancels, if it does: at once, in mid-stream, at the end."""
    moment = rng.choice((0, 1, max_tokens // 2, max_tokens - 1, max_tokens))
    draw = rng.random()
    if draw < 0.12:
        return (moment if stream else 0), None
    if draw < 0.22 and stream:
        return None, max(1, moment)
    return None, None


def _prompt(rng: random.Random, number: int, is_real: bool, is_poison: bool) -> str:
    if is_real:
        return f"Once upon a time there were {number} children who"
    words = " ".join(rng.choice(("tea", "moon", "river", "seven")) for _ in range(rng.randrange(9)))
    return f"chaos {number}: {LETHAL if is_poison else words}"
