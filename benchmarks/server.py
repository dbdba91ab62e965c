"""Starts the real server as its own processes, on a port and a data folder of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = str(Path(__file__).parent.parent)
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 30.0
# A benchmark's server is nobody else's: no key, no queue and no data that were there before.
_OURS = ("VDIFF_API_KEY", "VDIFF_REDIS_URL", "VDIFF_HOST", "VDIFF_PORT", "VDIFF_DATA_DIR")


class ServerStartError(RuntimeError):
    """The server did not come up; the message ends with its last words."""


@dataclass(frozen=True)
class RunningServer:
    port: int
    ready_s: float  # from the start of the process
    pid: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def served(**settings: str) -> Iterator[RunningServer]:
    """Run `dfastllm serve` until the block ends; `settings` are VDIFF_* without the prefix."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="dflb") as folder:
        own = {"PORT": str(port), "DATA_DIR": f"{folder}/data", **settings}
        command = [sys.executable, "-P", "-c", "from worker.cli import main; main()", "serve"]
        started = time.perf_counter()
        with process(command, Path(folder) / "log", **own) as log:
            wait_until_ready(port, log)
            yield RunningServer(port, time.perf_counter() - started, log.process.pid)


@dataclass(frozen=True)
class Child:
    """A started process and where its words go."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


@contextmanager
def process(command: Sequence[str], log: Path, **settings: str) -> Iterator[Child]:
    """Run a process for the length of a block, its output in a file."""
    inherited = {name: value for name, value in os.environ.items() if name not in _OURS}
    # The code beside this file, which the header names, and not what may be installed besides.
    inherited["PYTHONPATH"] = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
    environ = {**inherited, **{f"VDIFF_{name}": value for name, value in settings.items()}}
    with log.open("wb") as words:
        child = Child(_start(command, environ, words), log)
        try:
            yield child
        finally:
            _stop(child.process)


def wait_until_ready(port: int, child: Child) -> None:
    """Wait for 200 on /ready; raise ServerStartError where it does not come."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _is_ready(port):
        if child.process.poll() is not None or time.monotonic() > deadline:
            raise ServerStartError(f"the server does not start:\n{child.last_words}")
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _start(
    command: Sequence[str], environ: dict[str, str], words: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, env=environ, stdin=subprocess.DEVNULL, stdout=words, stderr=subprocess.STDOUT
    )


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False
