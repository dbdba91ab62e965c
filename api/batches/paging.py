"""Pages of what a tenant has, by the time it was made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import Redis

from api.errors import InvalidRequestError
from api.gateway import reachable
from worker.wire import batch_store

T = TypeVar("T")


async def find_page(
    redis: Redis,
    index: str,
    limit: int,
    after: str | None,
    find: Callable[[str], Awaitable[T | None]],
    *,
    is_newest_first: bool = True,
) -> tuple[list[T], bool]:
    """Return up to `limit` things behind the one named `after`, and whether there are more.

    What `find` does not find, or does not want, is passed over. Raises InvalidRequestError where
    there is no `after`.
    """
    found: list[T] = []
    last = after
    while True:
        names = await reachable(
            batch_store.listed(redis, index, limit, last, is_newest_first=is_newest_first)
        )
        if names is None and last == after:
            raise InvalidRequestError(f"There is no '{after}' to go on after.", param="after")
        for name in names or ():
            if (one := await reachable(find(name))) is not None:
                found.append(one)
            if len(found) > limit:
                return found[:limit], True
        if not names or len(names) <= limit:
            return found, False
        last = names[-1]
