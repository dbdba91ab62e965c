"""The Lua scripts by name: their text, their sha1, and a call that survives a restart of Redis."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import redis.asyncio
from redis import Redis
from redis.exceptions import NoScriptError

from worker.wire import codec, keys

SHARED = ("lib", "fair")
"""Parts of every script; the later ones may call the earlier ones."""
_MORE_PARTS = {"claim": ("route", "urgency"), "reap": ("route",)}
PARTS = (*SHARED, "route", "urgency")
"""What is no script by itself."""


class Script(NamedTuple):
    text: str
    sha: str


@cache
def load(name: str) -> Script:
    """Return a script with the parts that it uses put in after its `#!lua` line."""
    folder = files("worker.wire") / "scripts"
    shebang, body = (folder / f"{name}.lua").read_text("utf-8").split("\n", 1)
    parts = (*SHARED, *_MORE_PARTS.get(name, ()))
    shared = "\n".join((folder / f"{part}.lua").read_text("utf-8") for part in parts)
    text = f"{shebang}\n{shared}\n{body}"
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def call(client: Redis, name: str, arguments: Mapping[str, object], *contents: bytes) -> Any:
    """Run a script; one round trip, two when Redis has forgotten the text.

    `contents` follow the arguments as they are: what is large is not packed anew.
    """
    script, packed = load(name), _pack(arguments)
    try:
        return client.evalsha(script.sha, 0, packed, *contents)
    except NoScriptError:
        return client.eval(script.text, 0, packed, *contents)


async def acall(client: redis.asyncio.Redis, name: str, arguments: Mapping[str, object]) -> Any:
    """Run a script from an event loop; otherwise as `call`."""
    script, packed = load(name), _pack(arguments)
    try:
        return await client.evalsha(script.sha, 0, packed)
    except NoScriptError:
        return await client.eval(script.text, 0, packed)


def utc_now() -> str:
    """Return the time in the form in which RQ writes it into its hashes."""
    seconds, micros = divmod(time.time_ns() // 1000, 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{micros:06d}Z"


def _pack(arguments: Mapping[str, object]) -> bytes:
    common = {"rq": keys.RQ_PREFIX, "dfl": keys.DFL_PREFIX, "iso": utc_now()}
    return codec.encode({**common, **arguments})
