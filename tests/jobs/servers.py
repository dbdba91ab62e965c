"""API servers on a real queue, in this process and in ones of their own, and how jobs are put."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from api.app import create_app
from api.settings import ApiSettings
from tests import stack
from tests.api.fakes import serving
from tests.api.scripted_worker import wait_until
from tests.valkey import Valkey

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
SECRET = "a secret of the whole server"


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "x"}], **fields}


def job(body: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"url": CHAT, "body": chat() if body is None else body, **fields}


@contextmanager
def api_server(server: Valkey, **changes: Any) -> Iterator[httpx.Client]:
    """Serve the API from a thread of this process; quick in everything that it repeats."""
    settings = {"redis_url": server.url, "sweep_s": 0.1, "ping_s": 0.1, "queue_comment_s": 0.05}
    settings |= {"chores_s": 0.05, "accept_patience_s": 0.05, **changes}
    app = create_app(ApiSettings(**settings))  # type: ignore[arg-type]
    with serving(app) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


@contextmanager
def api_process(
    server: Valkey, **settings: str
) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    """Serve the API from a process that can be killed; `settings` are `VDIFF_*` without that."""
    with (
        stack.api_process(server, **settings) as (url, process),
        httpx.Client(base_url=url, timeout=20) as client,
    ):
        wait_until(lambda: _answers(client), "the API answers", limit_s=30)
        yield client, process


def submit(api: httpx.Client, request: dict[str, Any], **headers: str) -> dict[str, Any]:
    response = api.post("/v1/jobs", json=request, headers=headers)
    assert response.status_code == 202, response.text
    return dict(response.json())


def look(api: httpx.Client, job_id: str) -> dict[str, Any]:
    response = api.get(f"/v1/jobs/{job_id}")
    assert response.status_code == 200, response.text
    return dict(response.json())


def wait_for_status(api: httpx.Client, job_id: str, status: str) -> dict[str, Any]:
    wait_until(lambda: look(api, job_id)["status"] == status, f"{job_id} is {status}")
    return look(api, job_id)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False
