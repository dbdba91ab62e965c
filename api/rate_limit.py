"""Token buckets of a tenant in Redis, one of requests and one of tokens, for all API processes."""

from __future__ import annotations

from redis.asyncio import Redis

from api.errors import RateLimitedError
from api.gateway import reachable
from worker.wire import lua
from worker.wire.messages import Chat, GenerateJob
from worker.wire.rq_hash import num_places

CHARS_PER_TOKEN = 4
UNSAID_OUTPUT = 16
"""Tokens that an answer without a limit counts for; what it will have nobody knows."""


class RateLimiter:
    """Lets so many pass in each window; unused ones may come in a burst."""

    def __init__(self, redis: Redis, window_s: float) -> None:
        self._redis = redis
        self._window_s = window_s

    async def admit(self, tenant: str, unit: str, size: int, cost: int = 1) -> dict[str, str]:
        """Take `cost` of a tenant's `unit` ("requests" or "tokens"), of which a window has `size`.

        Returns the headers that say what is left. Raises RateLimitedError, with the same headers,
        where it is too little, and then takes nothing.
        """
        bucket = {"tenant": tenant, "unit": unit, "size": size, "window": self._window_s}
        passes, left, full_ms, wait_ms = await reachable(
            lua.acall(self._redis, "rate_limit", {**bucket, "cost": cost})
        )
        headers = {
            f"x-ratelimit-limit-{unit}": str(size),
            f"x-ratelimit-remaining-{unit}": str(left),
            f"x-ratelimit-reset-{unit}": f"{full_ms / 1000:.3f}s",
        }
        if not passes:
            error = RateLimitedError(
                f"This key may send {size} {unit} in {self._window_s:g} seconds.",
                retry_after_s=wait_ms / 1000,
            )
            error.headers |= headers
            raise error
        return headers


def num_tokens_charged(job: GenerateJob) -> int:
    """Return what a request counts for before it has run, as OpenAI counts.

    The greater of what it may write and what its letters come to: the API has no tokenizer.
    """
    limit = job.sampling.max_tokens
    num_output = num_places(job) * (UNSAID_OUTPUT if limit is None else limit)
    return max(1, num_output, _num_prompt_tokens(job))


def _num_prompt_tokens(job: GenerateJob) -> int:
    if isinstance(job.input, Chat):
        return sum(len(message.content) for message in job.input.messages) // CHARS_PER_TOKEN
    return sum(
        len(prompt) // CHARS_PER_TOKEN if isinstance(prompt, str) else len(prompt)
        for prompt in job.input.prompts
    )
