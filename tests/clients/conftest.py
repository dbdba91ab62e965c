"""One whole server for this folder: queue, a worker with the fake engine, an API process."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.api.scripted_worker import wait_until
from tests.valkey import Valkey, running_valkey
from tests.worker_bench import running_worker
from worker.child_process import start_child

KEY = "a-key-for-tests"
ROUNDS = int(os.environ.get("DFASTLLM_FUZZ_ROUNDS", "1"))  # `make fuzz` sets it
START_LIMIT_S = 30.0


class WholeServer(NamedTuple):
    url: str
    pid: int  # of the API process
    valkey: Valkey

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {KEY}"}

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=30)


@pytest.fixture(scope="session")
def whole_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeServer]:
    options = {"step_s": 0.001, "tokens_per_step": 32, "max_batch_size": 32}
    with (
        running_valkey() as valkey,
        running_worker(valkey, "w1", **options),
        _running_api(valkey, tmp_path_factory.mktemp("files")) as server,
    ):
        yield server


@contextmanager
def _running_api(valkey: Valkey, files: Path) -> Iterator[WholeServer]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VDIFF_")}
    environ = {
        **kept,
        "VDIFF_API_KEY": KEY,
        "VDIFF_REDIS_URL": valkey.url,
        "VDIFF_FILES_DIR": str(files),
        "VDIFF_PORT": str(port),
        "VDIFF_LOG_LEVEL": "error",
    }
    process = start_child([sys.executable, "-m", "api"], death_signal=signal.SIGKILL, env=environ)
    server = WholeServer(f"http://127.0.0.1:{port}", process.pid, valkey)
    try:
        wait_until(lambda: _is_ready(server.url), "the server is ready", START_LIMIT_S)
        yield server
    finally:
        process.kill()
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False
