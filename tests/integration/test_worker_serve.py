"""`dfastllm serve`: one command, all parts; nothing outlives it, and its data outlives all."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
import redis

from tests.valkey import free_port
from worker.child_process import start_child

WAIT_S = 30.0


class Served:
    """A `serve` process with the real API, the real queue, and the fake engine."""

    def __init__(self, data_dir: Path, output: IO[bytes]) -> None:
        self.data_dir = data_dir
        self.port = free_port()
        self._output = output
        environ = {
            **{key: value for key, value in os.environ.items() if not key.startswith("VDIFF_")},
            "VDIFF_DATA_DIR": str(data_dir),
            "VDIFF_PORT": str(self.port),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fake_serve"], env=environ, stdout=output, stderr=output
        )

    @property
    def output(self) -> str:
        return Path(self._output.name).read_text()

    def connect(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.data_dir / "valkey.sock"))

    def wait_until_ready(self) -> None:
        wait_until(
            lambda: f"ready at http://127.0.0.1:{self.port}/v1 with fake" in self.output, self
        )

    def complete(self, prompt: str) -> str:
        body = {"model": "fake", "prompt": prompt, "max_tokens": 20, "seed": 1}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=WAIT_S) as response:
            return str(json.load(response)["choices"][0]["text"])

    def worker_pids(self) -> dict[str, int]:
        with self.connect() as client:
            names = [name.decode() for name in client.smembers("rq:workers")]
            return {name: int(client.hget(name, "pid") or 0) for name in names}

    def queue_pid(self) -> int:
        with self.connect() as client:
            return int(client.info("server")["process_id"])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(WAIT_S)


def wait_until(is_so: Callable[[], bool], served: Served) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, served.output
        time.sleep(0.05)


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"  # dead; whoever must collect it has not yet


@pytest.fixture
def data_dir() -> Iterator[Path]:
    # Not pytest's folder: the address of a unix socket must be short.
    with tempfile.TemporaryDirectory(prefix="dfl") as folder:
        yield Path(folder) / "data"


@pytest.fixture
def serve(data_dir: Path) -> Iterator[Callable[[], Served]]:
    all_served: list[Served] = []

    def start() -> Served:
        output = (data_dir.parent / f"output-{len(all_served)}").open("wb")
        all_served.append(Served(data_dir, output))
        return all_served[-1]

    yield start
    for served in all_served:
        served.process.kill()
        served.process.wait()
        served._output.close()


def test_serve_answers_survives_a_workers_death_and_stops_all_it_started(
    serve: Callable[[], Served],
) -> None:
    served = serve()
    served.wait_until_ready()
    before = served.complete("Hello")
    assert len(before) == 20

    ((name, pid),) = served.worker_pids().items()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: bool(served.worker_pids().keys() - {name}), served)
    assert served.complete("Hello") == before
    assert name not in served.worker_pids()

    pids = [*served.worker_pids().values(), served.queue_pid()]
    assert served.stop() == 0
    assert all(map(is_gone, pids))
    assert (served.data_dir.stat().st_mode & 0o777) == 0o700


def test_nothing_outlives_a_killed_serve_and_the_data_is_there_again(
    serve: Callable[[], Served],
) -> None:
    served = serve()
    served.wait_until_ready()
    with served.connect() as client:
        client.set("kept", "value")
        client.execute_command("WAITAOF", 1, 0, 2000)
    pids = [*served.worker_pids().values(), served.queue_pid()]
    served.process.kill()
    wait_until(lambda: all(map(is_gone, pids)), served)

    again = serve()
    again.wait_until_ready()
    with again.connect() as client:
        assert client.get("kept") == b"value"
    assert again.stop() == 0


def run_serve(**environ: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("VDIFF_")}
    return subprocess.run(
        [sys.executable, "-m", "worker.cli", "serve"],
        env={**kept, **environ},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )


def test_a_taken_port_is_said_before_anything_starts(data_dir: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        done = run_serve(VDIFF_DATA_DIR=str(data_dir), VDIFF_PORT=str(port))
    assert done.returncode == 2
    assert f"port {port} is taken" in done.stderr
    assert not data_dir.exists()


def test_a_data_directory_is_used_by_one_server_only(data_dir: Path) -> None:
    data_dir.mkdir()
    holder = start_child(
        [sys.executable, "-c", HOLD_LOCK, str(data_dir / "lock")], death_signal=signal.SIGKILL
    )
    try:
        while not (data_dir / "held").exists():
            time.sleep(0.01)
        done = run_serve(VDIFF_DATA_DIR=str(data_dir), VDIFF_PORT=str(free_port()))
    finally:
        holder.kill()
        holder.wait()
    assert done.returncode == 2
    assert f"another server uses {data_dir}" in done.stderr


HOLD_LOCK = """\
import fcntl, pathlib, sys, time
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
pathlib.Path(sys.argv[1]).with_name("held").touch()
time.sleep(60)
"""


def test_a_wrong_setting_is_named_before_anything_starts(data_dir: Path) -> None:
    done = run_serve(VDIFF_DATA_DIR=str(data_dir), VDIFF_MAX_BATCH_SIZE="none")
    assert done.returncode == 2
    assert "VDIFF_MAX_BATCH_SIZE" in done.stderr
    assert not data_dir.exists()


def test_a_server_has_no_burst(data_dir: Path) -> None:
    done = run_serve(VDIFF_DATA_DIR=str(data_dir), VDIFF_BURST="true")
    assert done.returncode == 2
    assert "VDIFF_BURST" in done.stderr
