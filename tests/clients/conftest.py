"""One whole server for this folder: queue, a worker with the fake engine, an API process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.stack import api_process, wait_until_ready
from tests.valkey import Valkey, running_valkey
from tests.worker_bench import running_worker

KEY = "a-key-for-tests"
ROUNDS = int(os.environ.get("DFASTLLM_FUZZ_ROUNDS", "1"))  # `make fuzz` sets it


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
    settings = {"API_KEY": KEY, "FILES_DIR": str(files), "LOG_LEVEL": "error"}
    with api_process(valkey, **settings) as (url, process):
        wait_until_ready(url)
        yield WholeServer(url, process.pid, valkey)
