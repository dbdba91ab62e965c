"""Responses and batches of a key that has as much running as it may: their jobs are parked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import redis

from api.app import create_app
from api.settings import ApiSettings
from tests.api.fakes import serving
from tests.api.scripted_worker import wait_until
from tests.valkey import Valkey
from tests.worker_bench import MODEL, running_worker
from worker.wire import keys


@contextmanager
def _client(server: Valkey, folder: Path) -> Iterator[openai.OpenAI]:
    settings = ApiSettings(redis_url=server.url, files_dir=str(folder), max_running_per_key=1)
    with (
        serving(create_app(settings)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        wait_until(lambda: httpx.get(f"{url}/ready").status_code == 200, "it is ready", 30)
        yield client


def _begin_response(client: openai.OpenAI, num_tokens: int) -> str:
    begun = client.responses.create(
        model=MODEL, input="x", background=True, max_output_tokens=num_tokens
    )
    return begun.id


def test_a_parked_response_is_queued_and_cannot_be_forgotten(
    valkey: Valkey, redis_client: redis.Redis, tmp_path: Path
) -> None:
    with running_worker(valkey, "w1", step_s=0.02), _client(valkey, tmp_path) as client:
        first = _begin_response(client, 2000)
        wait_until(lambda: client.responses.retrieve(first).status == "in_progress", "it runs")
        parked = _begin_response(client, 5)
        wait_until(lambda: redis_client.hget(keys.job(parked), "status") == b"deferred", "parked")
        assert client.responses.retrieve(parked).status == "queued"
        with pytest.raises(openai.ConflictError):
            client.responses.delete(parked)
        client.responses.cancel(first)
        wait_until(lambda: client.responses.retrieve(parked).status == "incomplete", "it has run")


def test_a_batch_waits_for_its_parked_lines(
    valkey: Valkey, redis_client: redis.Redis, tmp_path: Path
) -> None:
    url = "/v1/completions"
    body: dict[str, Any] = {"model": MODEL, "prompt": "x", "max_tokens": 10}
    lines = [
        json.dumps({"custom_id": str(n), "method": "POST", "url": url, "body": body})
        for n in range(6)
    ]
    with running_worker(valkey, "w1", step_s=0.03), _client(valkey, tmp_path) as client:
        file = client.files.create(file=("a", "\n".join(lines).encode()), purpose="batch")
        batch_id = client.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        ).id
        wait_until(lambda: client.batches.retrieve(batch_id).status == "completed", "done", 30)
        counts = client.batches.retrieve(batch_id).request_counts
        assert counts is not None
        assert (counts.completed, counts.failed) == (6, 0)
        # Nobody had to take it up again.
        assert redis_client.hget(keys.batch(batch_id), "epoch") == b"1"
