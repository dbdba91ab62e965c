"""What Redis has to do for a job, counted by Redis itself."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from redis import Redis

from worker.wire import lua


def counters(redis: Redis) -> dict[str, float]:
    """Calls since the server's start; the two commands that ask for them are left out."""
    commands: dict[str, Any] = redis.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): entry["calls"] for name, entry in commands.items()}
    return {
        "scripts": float(calls.get("evalsha", 0)),
        "commands": float(sum(calls.values()) - calls.get("info", 0)),
        "reads": float(redis.info("stats")["total_reads_processed"]) - calls.get("info", 0),
    }


def idle_rates(redis: Redis, seconds: float) -> dict[str, float]:
    """What goes on in a second in which nobody asks for anything."""
    before = counters(redis)
    time.sleep(seconds)
    after = counters(redis)
    return {kind: (after[kind] - before[kind]) / seconds for kind in after}


def calls_by_script(redis: Redis, action: Callable[[], object]) -> dict[str, int]:
    """How often each of our scripts is called while `action` runs.

    MONITOR slows the server a good deal: nothing may be timed meanwhile.
    """
    names = {lua.load(name).sha: name for name in _script_names()}
    seen: Counter[str] = Counter()
    with redis.monitor() as monitor:  # type: ignore[no-untyped-call]
        reader = threading.Thread(target=_count, args=(monitor, names, seen), daemon=True)
        reader.start()
        action()
        redis.echo(_END)
        reader.join()
    return dict(seen)


_END = "end of the watch"


def _count(monitor: Any, names: dict[str, str], seen: Counter[str]) -> None:
    for entry in monitor.listen():
        kind, *rest = entry["command"].split(" ", 2)
        if kind.upper() == "ECHO" and _END in entry["command"]:
            return
        if kind.upper() == "EVALSHA":
            seen[names.get(rest[0], "of rq")] += 1


def _script_names() -> list[str]:
    scripts = (files("worker.wire") / "scripts").iterdir()
    return [item.name.removesuffix(".lua") for item in scripts if item.name.endswith(".lua")]
