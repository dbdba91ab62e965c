"""Everything real: a worker is killed in the middle of eight streams, and nobody notices."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

from benchmarks.server import RunningServer, served

NUM_STREAMS = 8
NUM_TOKENS = 96
KILL_AFTER = 4
"""Events that every stream has shown when the worker is killed."""
WAIT_S = 120.0


@dataclass
class Stream:
    """What one client has seen."""

    indices: list[int] = field(default_factory=list)
    text: str = ""
    is_done: bool = False


@dataclass(frozen=True)
class Cluster:
    server: RunningServer
    queue: redis.Redis

    def busiest_worker(self) -> tuple[str, int]:
        """Key and process id of the worker that runs most jobs."""
        names = [name.decode() for name in self.queue.smembers("rq:workers")]
        busiest = max(names, key=lambda name: self.queue.scard(f"{name}:executions"))
        return busiest, int(self.queue.hget(busiest, "pid") or 0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Not pytest's folder: the address of a unix socket must be short.
    with tempfile.TemporaryDirectory(prefix="dfl") as folder:
        data = Path(folder) / "data"
        queue = redis.Redis(unix_socket_path=str(data / "valkey.sock"))
        with served(WORKERS="2", DATA_DIR=str(data)) as server, queue:
            wait_for(lambda: queue.scard("rq:workers") == 2)
            yield Cluster(server, queue)


def test_eight_streams_survive_the_kill_of_their_worker_byte_for_byte(cluster: Cluster) -> None:
    undisturbed = run_streams(cluster.server.url, on_all_started=lambda: None)
    killed: list[str] = []

    def kill_busiest() -> None:
        name, pid = cluster.busiest_worker()
        assert cluster.queue.scard(f"{name}:executions") >= NUM_STREAMS // 2
        os.kill(pid, signal.SIGKILL)
        killed.append(name)

    disturbed = run_streams(cluster.server.url, on_all_started=kill_busiest)
    assert killed
    for before, after in zip(undisturbed, disturbed, strict=True):
        assert after.is_done
        # A delta without text (half a character, a control token) is no event of its own.
        assert after.indices == sorted(set(after.indices)), "a delta is doubled or out of order"
        assert after.text == before.text, "a delta is missing, or the rerun took another way"
    assert all(stream.text for stream in undisturbed)


def run_streams(url: str, on_all_started: Callable[[], None]) -> list[Stream]:
    """Run all streams at once; call back when each has shown a few events and none has ended."""
    streams = [Stream() for _ in range(NUM_STREAMS)]
    barrier = threading.Barrier(NUM_STREAMS, action=on_all_started, timeout=WAIT_S)
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        for future in [pool.submit(read, url, i, streams[i], barrier) for i in range(NUM_STREAMS)]:
            future.result()
    return streams


def read(url: str, number: int, stream: Stream, barrier: threading.Barrier) -> None:
    """Read one stream to its end; half of the clients are greedy, half draw."""
    body = {
        "model": "dfastllm-embedded",
        "prompt": f"Once upon a time there was a child of {number + 3} years who",
        "max_tokens": NUM_TOKENS,
        "temperature": number % 2,
        "seed": number,
        "ignore_eos": True,
        "stream": True,
    }
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=WAIT_S) as response:
        for line in response:
            if line.startswith(b"id: "):
                stream.indices.append(int(line[4:]))
                if len(stream.indices) == KILL_AFTER:
                    barrier.wait()
            elif line == b"data: [DONE]\n":
                stream.is_done = True
            elif line.startswith(b"data: "):
                choices = json.loads(line[6:])["choices"]
                stream.text += "".join(choice["text"] for choice in choices)


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)
