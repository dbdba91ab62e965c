"""deploy/redis/users.acl: the whole server runs under its users, and nothing is refused."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from api.app import create_app
from api.settings import ApiSettings
from tests.acl_server import refusals, running_acl_server, url_of
from tests.api.fakes import serving
from tests.valkey import Valkey
from tests.worker_bench import QUEUE, running_worker, wait_for_model, wait_for_worker
from worker.wire import keys

BIN = Path(sys.executable).parent
WAIT_S = 30.0
REGISTRIES = ("queued", "started", "finished", "failed", "canceled", "deferred", "scheduled")


@pytest.fixture
def server() -> Iterator[Valkey]:
    with running_acl_server() as server:
        yield server


def test_the_whole_server_runs_under_its_users(server: Valkey) -> None:
    settings = ApiSettings(
        redis_url=url_of(server, "api"),
        rate_limit_requests=1000,
        webhook_networks=("127.0.0.0/8",),
        chores_s=0.1,
    )
    worker_url = {"redis_url": url_of(server, "worker"), "lease": 1.0, "step_s": 0.01}
    with server.connect() as admin, serving(create_app(settings)) as api:
        with running_worker(server, "w1", **worker_url) as first:  # type: ignore[arg-type]
            wait_for_model(admin)
            assert _ask(api, max_tokens=5).status_code == 200
            _use_what_else_there_is(api)
            with httpx.stream("POST", f"{api}/v1/completions", json=_body(900), timeout=20) as one:
                next(one.iter_bytes())  # and gone: cancelled
            _wait_until(lambda: admin.zcard(f"rq:canceled:{QUEUE}") == 1, "it is cancelled")
            with httpx.stream("POST", f"{api}/v1/completions", json=_body(100), timeout=20) as two:
                words = two.iter_bytes()
                next(words)
                first.kill()
                with running_worker(server, "w2", **worker_url) as second:  # type: ignore[arg-type]
                    assert b"".join(words).endswith(b"data: [DONE]\n\n")
                    wait_for_worker(admin, "w2")
                    assert "w2" in _rq(server, "info")
                    second.terminate()
                    assert second.wait(20) == 0
        assert httpx.get(f"{api}/metrics").status_code == 200
        assert refusals(admin) == []


def test_the_dashboards_pages_and_buttons_work(server: Valkey) -> None:
    settings = ApiSettings(redis_url=url_of(server, "api"))
    poison = {"redis_url": url_of(server, "worker")}
    with server.connect() as admin:
        with (
            serving(create_app(settings)) as api,
            running_worker(server, "w1", **poison),  # type: ignore[arg-type]
        ):
            wait_for_model(admin)
            for _ in range(3):
                assert _ask(api, max_tokens=2).status_code == 200
        names = [name.decode() for name in admin.zrange(f"rq:finished:{QUEUE}", 0, -1)]
        for name in names[:2]:
            admin.zadd(f"rq:failed:{QUEUE}", {name: time.time() + 600})
            admin.hset(keys.job(name), "status", "failed")
        with _dashboard(url_of(server, "dashboard")) as (get, post):
            pages = ["/", "/0/data/queues.json", "/0/data/workers.json"]
            pages += [f"/0/data/jobs/{QUEUE}/{name}/8/asc/1.json" for name in REGISTRIES]
            pages += [f"/0/view/job/{names[0]}", f"/0/data/job/{names[0]}.json"]
            for page in pages:
                get(page)
            assert refusals(admin) == []
            post(f"/job/{names[0]}/requeue")
            assert admin.lrange(keys.queue(QUEUE), 0, -1) == [names[0].encode()]
            post(f"/queue/{QUEUE}/compact")
            post(f"/requeue/{QUEUE}")
            assert admin.llen(keys.queue(QUEUE)) == 2
            post(f"/job/{names[2]}/delete")
            post(f"/queue/{QUEUE}/queued/empty")
            assert admin.keys("rq:job:*") == []
        assert refusals(admin) == []


def _body(max_tokens: int) -> dict[str, object]:
    return {"model": "fake", "prompt": "x", "max_tokens": max_tokens, "stream": True}


def _ask(api: str, max_tokens: int) -> httpx.Response:
    return httpx.post(f"{api}/v1/completions", json=_body(max_tokens), timeout=20)


def _use_what_else_there_is(api: str) -> None:
    """Jobs to come back for, twice the same one, a webhook nobody answers; questions; responses."""
    plain = {"model": "fake", "prompt": "x", "max_tokens": 3}
    webhook = {"url": "http://127.0.0.1:9/", "secret": "whsec_" + "c2VjcmV0" * 4}
    job = {"url": "/v1/completions", "body": plain, "webhook": webhook}
    key = {"Idempotency-Key": "once"}
    first = httpx.post(f"{api}/v1/jobs", json=job, headers=key)
    assert first.status_code == 202, first.text
    assert httpx.post(f"{api}/v1/jobs", json=job, headers=key).json()["id"] == first.json()["id"]
    path = f"{api}/v1/jobs/{first.json()['id']}"
    _wait_until(lambda: httpx.get(path).json()["webhook"]["attempts"] > 0, "the webhook is tried")
    assert httpx.get(f"{path}/events").status_code == 200
    assert httpx.get(f"{api}/v1/jobs").json()["data"]
    assert httpx.delete(path).status_code == 200
    assert httpx.post(f"{api}/tokenize", json=plain).status_code < 500
    request = {"model": "fake", "input": "x", "max_output_tokens": 16}
    answer = httpx.post(f"{api}/v1/responses", json=request, timeout=20)
    assert answer.status_code < 500, answer.text


def _rq(server: Valkey, command: str) -> str:
    done = subprocess.run(
        [str(BIN / "rq"), command, "-u", url_of(server, "dashboard")],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


def _wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


@contextmanager
def _dashboard(redis_url: str) -> Iterator[tuple[Callable[[str], bytes], Callable[[str], bytes]]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [str(BIN / "rq-dashboard"), "-b", "127.0.0.1", "-p", str(port), "-u", redis_url]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def get(path: str, data: bytes | None = None) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data, timeout=20) as answer:
            return bytes(answer.read())

    def is_there() -> bool:
        try:
            return bool(get("/favicon.ico")) or True
        except (urllib.error.URLError, ConnectionError):
            assert process.poll() is None
            return False

    try:
        _wait_until(is_there, "the dashboard answers")
        yield get, lambda path: get(path, b"")
    finally:
        process.terminate()
        process.wait(timeout=20)
