"""A token bucket a tenant in Redis: one round trip, the same for every API process."""

from __future__ import annotations

import hashlib
import logging
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from api.errors import RateLimitedError, UnavailableError
from worker.wire import keys

logger = logging.getLogger(__name__)


class RateLimiter:
    """Lets `num_requests` pass in each window; unused ones may come in a burst."""

    def __init__(self, redis: Redis, num_requests: int, window_s: float) -> None:
        self._redis = redis
        self._num_requests = num_requests
        self._window_s = window_s
        self._text = (files("api") / "rate_limit.lua").read_text("utf-8")
        self._sha = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    async def admit(self, tenant: str) -> dict[str, str]:
        """Count one request and return the headers that say what is left.

        Raises RateLimitedError, with the same headers, when nothing is.
        """
        passes, left, full_ms, wait_ms = await self._take(f"{keys.DFL_PREFIX}:rl:{tenant}")
        headers = {
            "x-ratelimit-limit-requests": str(self._num_requests),
            "x-ratelimit-remaining-requests": str(left),
            "x-ratelimit-reset-requests": f"{full_ms / 1000:.3f}s",
        }
        if not passes:
            error = RateLimitedError(
                f"This key may send {self._num_requests} requests in {self._window_s:g} seconds.",
                retry_after_s=wait_ms / 1000,
            )
            error.headers |= headers
            raise error
        return headers

    async def _take(self, key: str) -> Any:
        arguments = (1, key, str(self._num_requests), str(self._window_s))
        try:
            try:
                return await self._redis.evalsha(self._sha, *arguments)
            except NoScriptError:
                return await self._redis.eval(self._text, *arguments)
        except (RedisError, OSError) as error:
            raise UnavailableError("The queue cannot be reached.") from error
