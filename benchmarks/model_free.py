"""The whole server without a model: embedded Valkey, one API process, one worker around a fake."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from redis import Redis

from benchmarks.server import free_port, process, wait_until_ready
from worker.embedded_redis import EmbeddedRedis

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class ServerPath:
    """A running API, the Redis behind it, and its parts' processes by name."""

    port: int
    redis: Redis
    pids: Mapping[str, int]

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds that each part has used since its start."""
        return {part: cpu_seconds(pid) for part, pid in self.pids.items()}


@contextmanager
def whole_path(worker_module: str, *flags: str) -> Iterator[ServerPath]:
    """Run the server until the block ends, its worker by `python -m worker_module *flags`."""
    port = free_port()
    with queue_in_folder() as (folder, queue):
        api = [sys.executable, "-m", "api"]
        settings = {"PORT": str(port), "REDIS_URL": queue.url}
        with (
            process(worker_command(worker_module, queue, *flags), folder / "worker.log") as worker,
            process(api, folder / "api.log", **settings) as child,
            Redis.from_url(queue.url) as redis,
        ):
            wait_until_ready(port, child)
            pids = {"api": child.process.pid, "worker": worker.process.pid}
            yield ServerPath(port, redis, {**pids, "valkey": pid_of(queue)})


@contextmanager
def queue_in_folder() -> Iterator[tuple[Path, EmbeddedRedis]]:
    """Run a Valkey of our own in a new folder, which also takes the logs."""
    with tempfile.TemporaryDirectory(prefix="dflb") as name:
        queue = EmbeddedRedis(Path(name) / "data")
        queue.start()
        try:
            yield Path(name), queue
        finally:
            queue.stop()


def worker_command(module: str, queue: EmbeddedRedis, *flags: str) -> Sequence[str]:
    return [sys.executable, "-m", module, "--redis-url", queue.url, *flags]


def pid_of(queue: EmbeddedRedis) -> int:
    assert queue.process is not None
    return queue.process.pid


def cpu_seconds(pid: int) -> float:
    """What a process, with all its threads, has used so far; in steps of 10 ms as a rule."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = int(fields[11]), int(fields[12])
    return (user + system) / _TICKS_A_SECOND
