"""What stops the start: a Redis that does not let us in, or one that would lose jobs."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from redis.exceptions import AuthenticationError, NoPermissionError

from worker.wire.redis_url import NAME, RedisAddress

OLDEST = (7, 0)
# Of a command within a script; comes without the code that redis-py knows it by. Before 7.2, after.
_IN_SCRIPT = ("The user executing the script can't", "ACL failure in script")
_OF_SENTINELS = ("AuthenticationError", "CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER")
ACL_PAGE = "deploy/redis/users.acl has what each part needs"


def why_refused(error: BaseException, address: RedisAddress) -> str | None:
    """Return what is wrong when waiting will not help; None: Redis may yet come."""
    for cause in _causes(error):
        if isinstance(cause, AuthenticationError):
            return f"{NAME}: {address.name} does not take user and password: {cause}"
        if isinstance(cause, NoPermissionError) or _says(cause, _IN_SCRIPT):
            return f"{NAME}: {address.name} does not let this user do its work: {cause}; {ACL_PAGE}"
        if _is_tls_refusal(cause):
            return f"{NAME}: no TLS with {address.name}: {cause}"
        # The sentinels' errors arrive as words within another error.
        if _says(cause, _OF_SENTINELS):
            return f"{NAME}: no way in at {address.name}: {cause}"
    return None


def why_silent(error: BaseException, address: RedisAddress) -> str:
    """Return the words for a Redis that never came; a refused TLS looks just like that."""
    hint = (
        "is it TLS that it speaks, and does it ask for a client's certificate "
        "(ssl_certfile, ssl_keyfile)?"
        if address.is_tls
        else "if it speaks TLS, the address begins with rediss://"
    )
    return f"{NAME}: {address.name} does not answer: {error} ({hint})"


def why_unfit(info: Mapping[str, Any]) -> str | None:
    """Return why a server must not hold the queue, by what it says in INFO; None: it may."""
    parts = str(info.get("redis_version", "")).split(".")[:2]
    if all(part.isdecimal() for part in parts) and tuple(map(int, parts)) < OLDEST:
        return f"{NAME}: this server speaks Redis {info['redis_version']}; 7.0 is the oldest we use"
    if int(info.get("cluster_enabled", 0)):
        return f"{NAME}: this server is part of a cluster, over which our scripts cannot reach"
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if int(info.get("maxmemory", 0)) and policy != "noeviction":
        return (
            f"{NAME}: this server forgets keys when its memory is full (maxmemory-policy {policy}),"
            " and with them accepted jobs; set maxmemory-policy noeviction"
        )
    return None


def _is_tls_refusal(cause: BaseException) -> bool:
    is_hang_up = isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError)
    return isinstance(cause, ssl.SSLError) and not is_hang_up


def _says(cause: BaseException, words: Iterable[str]) -> bool:
    return any(word in str(cause) for word in words)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
