"""An API and a real worker with real models on one queue, and OpenAI's client in front of them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import openai

from api.app import create_app
from api.settings import ApiSettings
from tests.api.fakes import serving
from tests.api.scripted_worker import wait_until
from tests.valkey import Valkey
from worker.child_process import start_child

START_LIMIT_S = 90.0  # it imports torch and measures its models, on a machine that may be busy


@contextmanager
def client_of_a_real_worker(server: Valkey, **settings: str) -> Iterator[openai.OpenAI]:
    """Yield a client once the worker is ready; `settings` are VDIFF_* variables of the worker."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VDIFF_")}
    environ = {**kept, "VDIFF_REDIS_URL": server.url, "VDIFF_CPU_THREADS": "1", **settings}
    command = [sys.executable, "-m", "worker", "--name", "w1"]
    worker = start_child(command, death_signal=signal.SIGKILL, env=environ)
    try:
        with (
            serving(create_app(ApiSettings(redis_url=server.url))) as url,
            openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=60) as client,
        ):
            _wait_until_ready(url)
            yield client
    finally:
        worker.kill()
        worker.wait()


def _wait_until_ready(url: str) -> None:
    def is_ready() -> bool:
        return httpx.get(f"{url}/ready").status_code == 200

    wait_until(is_ready, "the server is ready", START_LIMIT_S)
