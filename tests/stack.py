"""API processes and clients for tests of the whole stack: processes to kill, streams to compare."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import redis

from tests.api.scripted_worker import wait_until
from tests.fakes import FakeEngine, FakeSequence
from tests.valkey import Valkey, free_port
from tests.worker_bench import status_of
from worker.child_process import start_child

COMPLETIONS = "/v1/completions"
CLIENT_LIMIT_S = 60.0


@contextmanager
def api_process(
    server: Valkey, *, clock_s: float = 0.0, **settings: str
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run `python -m api`, its clock off by `clock_s`; yields its address and its process.

    `settings` are `VDIFF_*` without that; it has no others.
    """
    port = free_port()
    own = {"PORT": str(port), "REDIS_URL": server.url, **settings}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VDIFF_")}
    environ = kept | {f"VDIFF_{name}": value for name, value in own.items()}
    command = [sys.executable, "-m", "tests.shifted_clock", str(clock_s), "api"]
    process = start_child(command, death_signal=signal.SIGKILL, env=environ)
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


def wait_until_ready(*urls: str) -> None:
    for url in urls:
        wait_until(lambda url=url: _is_ready(url), f"{url} is ready", 30.0)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False


def body_of(prompt: str, max_tokens: int, **more: Any) -> dict[str, Any]:
    wanted = {"model": "fake", "prompt": prompt, "seed": 5, "max_tokens": max_tokens}
    return {**wanted, "ignore_eos": True, **more}


def undisturbed(prompt: str, max_tokens: int) -> str:
    """Return what one fake engine alone says to `body_of(prompt, max_tokens)`."""
    engine = FakeEngine()
    seq = FakeSequence("alone", engine.tokenizer.encode(prompt), _Seed, 0, 0, max_tokens)  # type: ignore[arg-type]
    while len(seq.output) < max_tokens:
        seq.output.append(seq.next_token())
    return bytes(seq.output).decode()


class _Seed:
    seed = 5


@dataclass
class Stream:
    """One client in a thread of its own, and what it has seen."""

    url: str
    body: dict[str, Any]
    leaves_after: int | None = None
    indices: list[int] = field(default_factory=list)
    text: str = ""
    job_id: str = ""
    error: str = ""
    is_done: bool = False

    def __post_init__(self) -> None:
        self._start("POST", self.url + COMPLETIONS, json=self.body)

    def resume(self, url: str) -> None:
        """Read on at another API process, after the last event that has come."""
        self.error = ""
        last = {"Last-Event-ID": str(self.indices[-1])}
        self._start("GET", f"{url}/v1/jobs/{self.job_id}/events", headers=last)

    def _start(self, method: str, url: str, **request: Any) -> None:
        arguments = (method, url, request)
        self._thread = threading.Thread(target=self._read, args=arguments, daemon=True)
        self._thread.start()

    def wait_for(self, num_events: int) -> None:
        wait_until(lambda: len(self.indices) >= num_events, f"{num_events} events have come", 30.0)

    def join(self) -> None:
        self._thread.join(CLIENT_LIMIT_S)
        assert not self._thread.is_alive(), f"never got an end: {self.text!r}"

    def assert_whole(self, text: str) -> None:
        self.join()
        assert (self.error, self.is_done) == ("", True)
        assert self.indices == list(range(len(self.indices)))
        assert self.text == text

    def _read(self, method: str, url: str, request: dict[str, Any]) -> None:
        try:
            with (
                httpx.Client(timeout=CLIENT_LIMIT_S) as client,
                client.stream(method, url, **request) as response,
            ):
                for line in response.iter_lines():
                    self._take(line)
                    if len(self.indices) == self.leaves_after and line.startswith("data:"):
                        return
        except httpx.TransportError as error:
            self.error = type(error).__name__

    def _take(self, line: str) -> None:
        if line.startswith("id: "):
            self.indices.append(int(line[4:]))
        elif line == "data: [DONE]":
            self.is_done = True
        elif line.startswith("data: "):
            event = json.loads(line[6:])
            if "error" in event:
                self.error = str(event["error"]["code"])
                return
            self.job_id = event["id"]
            self.text += "".join(choice["text"] for choice in event["choices"])


def job_ids(client: redis.Redis) -> list[str]:
    return [key.decode().removeprefix("rq:job:") for key in client.scan_iter(match="rq:job:*")]


def wait_for_status(client: redis.Redis, job_id: str, *statuses: str) -> str:
    wait_until(lambda: status_of(client, job_id) in statuses, f"{job_id} is {statuses}", 20.0)
    return status_of(client, job_id)


def attempts(client: redis.Redis, job_id: str) -> int:
    return int(client.hget(f"rq:job:{job_id}", "dfl_attempt") or 0)


def eventually(is_true: Callable[[], bool], what: str) -> None:
    wait_until(is_true, what, 20.0)


def spawn(*command: str) -> subprocess.Popen[bytes]:
    return start_child([sys.executable, "-m", *command], death_signal=signal.SIGKILL)
