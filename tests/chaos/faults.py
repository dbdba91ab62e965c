"""What goes wrong in a chaos run and when: a schedule from a seed, and how each fault is done."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import redis.asyncio
from redis.exceptions import RedisError

from tests.chaos.cluster import LEASE_S, Cluster

QUIET_START_S = 1.5  # the first jobs get going before anything breaks


@dataclass(frozen=True)
class Fault:
    """One fault: `victim` picks among those there are, `length_s` says how long it lasts."""

    at_s: float
    kind: str
    victim: int
    length_s: float

    def __str__(self) -> str:
        return f"{self.at_s:6.2f} s  {self.kind} #{self.victim}  {self.length_s:.2f} s"


def plan_faults(seed: int, count: int, length_s: float) -> list[Fault]:
    """Return `count` faults in order of time; each kind comes before any comes again."""
    rng = random.Random(f"faults {seed}")
    kinds: list[str] = []
    while len(kinds) < count:
        kinds += rng.sample(sorted(_LENGTHS), len(_LENGTHS))
    times = sorted(rng.uniform(QUIET_START_S, length_s) for _ in range(count))
    return [
        Fault(at_s, kind, rng.randrange(60), rng.uniform(*_LENGTHS[kind]))
        for at_s, kind in zip(times, kinds, strict=False)
    ]


async def strike(cluster: Cluster, client: redis.asyncio.Redis, fault: Fault) -> None:
    """Do one fault, to its end."""
    await _STRIKES[fault.kind](cluster, client, fault)


async def heal(cluster: Cluster, client: redis.asyncio.Redis) -> None:
    """End whatever is still going on."""
    for slot in cluster.slots:
        slot.thaw()
    await client.config_set("maxmemory", 0)
    cluster.tick()


async def _kill_worker(cluster: Cluster, client: redis.asyncio.Redis, fault: Fault) -> None:
    cluster.workers[fault.victim % len(cluster.workers)].signal(signal.SIGKILL)


async def _stop_worker(cluster: Cluster, client: redis.asyncio.Redis, fault: Fault) -> None:
    cluster.workers[fault.victim % len(cluster.workers)].signal(signal.SIGTERM)


async def _freeze_worker(cluster: Cluster, client: redis.asyncio.Redis, fault: Fault) -> None:
    slot = cluster.workers[fault.victim % len(cluster.workers)]
    slot.freeze()
    await asyncio.sleep(fault.length_s)
    slot.thaw()


async def _kill_api(cluster: Cluster, client: redis.asyncio.Redis, fault: Fault) -> None:
    cluster.apis[fault.victim % len(cluster.apis)].signal(signal.SIGKILL)


async def _freeze_api(cluster: Cluster, client: redis.asyncio.Redis, fault: Fault) -> None:
    slot = cluster.apis[fault.victim % len(cluster.apis)]
    slot.freeze()
    await asyncio.sleep(fault.length_s)
    slot.thaw()


async def _kill_queue(cluster: Cluster, client: redis.asyncio.Redis, fault: Fault) -> None:
    async with cluster.queue_lock:
        cluster.server.kill()
        await asyncio.sleep(fault.length_s)
        cluster.server.start()


async def _power_failure(cluster: Cluster, client: redis.asyncio.Redis, fault: Fault) -> None:
    """Kill the queue, and let its disk lack what was written last."""
    disk, copy = cluster.server.folder / "appendonlydir", cluster.server.folder / "copy"
    async with cluster.queue_lock:
        shutil.copytree(disk, copy)
        await asyncio.sleep(fault.length_s)
        cluster.server.kill()
        shutil.rmtree(disk)
        copy.rename(disk)
        cluster.server.start()


async def _freeze_queue(cluster: Cluster, client: redis.asyncio.Redis, fault: Fault) -> None:
    async with cluster.queue_lock:
        cluster.server.send_signal(signal.SIGSTOP)
        await asyncio.sleep(fault.length_s)
        cluster.server.send_signal(signal.SIGCONT)


async def _cut_pubsub(cluster: Cluster, client: redis.asyncio.Redis, fault: Fault) -> None:
    await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")


async def _cut_all(cluster: Cluster, client: redis.asyncio.Redis, fault: Fault) -> None:
    for kind in ("pubsub", "normal"):
        await client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


async def _fill_memory(cluster: Cluster, client: redis.asyncio.Redis, fault: Fault) -> None:
    await client.config_set("maxmemory", 1)
    await asyncio.sleep(fault.length_s)
    await _again(lambda: client.config_set("maxmemory", 0))


async def _move_clock(cluster: Cluster, client: redis.asyncio.Redis, fault: Fault) -> None:
    slots = cluster.slots
    slots[fault.victim % len(slots)].signal(signal.SIGUSR2)


async def _again(call: Callable[[], Awaitable[object]]) -> None:
    for _ in range(50):
        try:
            await call()
            return
        except (RedisError, OSError):
            await asyncio.sleep(0.1)
    await call()


_STRIKES = {
    "kill worker": _kill_worker,
    "stop worker": _stop_worker,
    "freeze worker": _freeze_worker,
    "kill api": _kill_api,
    "freeze api": _freeze_api,
    "kill queue": _kill_queue,
    "power failure": _power_failure,
    "freeze queue": _freeze_queue,
    "cut pubsub": _cut_pubsub,
    "cut all": _cut_all,
    "fill memory": _fill_memory,
    "move clock": _move_clock,
}
_LENGTHS = {
    **dict.fromkeys(_STRIKES, (0.0, 0.0)),
    "freeze worker": (0.2 * LEASE_S, 2 * LEASE_S),
    "freeze api": (0.2, 1.5),
    "kill queue": (0.05, 1.5),
    "power failure": (0.1, 1.0),
    "freeze queue": (0.1, 1.5),
    "fill memory": (0.5, 2.5),
}
