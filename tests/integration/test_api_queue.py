"""The API on a real queue: what it does when messages, connections and clients get lost."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import redis.asyncio

from api.app import create_app
from api.gateway import RedisGateway
from api.settings import ApiSettings
from tests.api.fakes import serving
from tests.api.scripted_worker import ScriptedWorker, wait_until
from tests.valkey import Valkey
from tests.worker_bench import make_job
from worker.wire import keys, queueing

CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
STREAM = BODY | {"stream": True}
RESULT_WAIT_S = 15.0


@contextmanager
def _api(server: Valkey, **changes: object) -> Iterator[httpx.Client]:
    settings = {"redis_url": server.url, "sweep_s": 0.1, "ping_s": 0.1, **changes}
    app = create_app(ApiSettings(**settings))  # type: ignore[arg-type]
    with serving(app) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


@pytest.fixture
def worker(valkey: Valkey) -> Iterator[ScriptedWorker]:
    worker = ScriptedWorker(valkey)
    yield worker
    worker.redis.close()


@pytest.fixture
def api(valkey: Valkey, worker: ScriptedWorker) -> Iterator[httpx.Client]:
    with _api(valkey) as client:
        yield client


@pytest.fixture
def post() -> Iterator[Callable[..., Future[httpx.Response]]]:
    """Return a function that sends a chat in the background, while the test plays the worker."""
    with ThreadPoolExecutor(4) as pool:

        def send(client: httpx.Client, body: dict[str, object]) -> Future[httpx.Response]:
            return pool.submit(client.post, CHAT, json=body)

        yield send


def _text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    assert response.text.endswith("data: [DONE]\n\n"), response.text
    lines = [line for line in response.text.splitlines() if line.startswith("data: {")]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


Post = Callable[..., Future[httpx.Response]]


@pytest.mark.parametrize("body", [BODY, STREAM])
def test_an_answer_comes_back(
    api: httpx.Client, worker: ScriptedWorker, post: Post, body: dict[str, object]
) -> None:
    answer = post(api, body)
    worker.claim()
    worker.accept()
    worker.say("hello")
    worker.finish()
    response = answer.result()
    if body is STREAM:
        assert _text(response) == "hello"
    else:
        assert response.json()["choices"][0]["message"]["content"] == "hello"
        assert response.json()["usage"]["completion_tokens"] == 5


def test_a_lost_delta_is_read_from_the_log(
    valkey: Valkey, worker: ScriptedWorker, post: Post
) -> None:
    # No sweep: the gap itself has it read.
    with _api(valkey, sweep_s=600) as api:
        answer = post(api, STREAM)
        worker.claim()
        worker.accept()
        worker.say("he")
        worker.say_unheard("l")
        worker.say("lo")
        worker.finish()
        assert _text(answer.result(RESULT_WAIT_S)) == "hello"


def test_a_lost_acceptance_and_a_lost_start_are_found_by_the_sweep(
    api: httpx.Client, worker: ScriptedWorker, post: Post
) -> None:
    answer = post(api, STREAM)
    worker.claim()
    worker.say_unheard("h")
    worker.say_unheard("i")
    worker.finish_unheard()
    assert _text(answer.result()) == "hi"


@pytest.mark.parametrize("body", [BODY, STREAM])
def test_a_lost_ending_ends_the_answer_all_the_same(
    api: httpx.Client, worker: ScriptedWorker, post: Post, body: dict[str, object]
) -> None:
    answer = post(api, body)
    worker.claim()
    worker.accept()
    worker.say("12345678")  # as many as a job that nobody streams is logged at a time
    worker.say_unheard("o")
    worker.finish_unheard()
    assert "o" in answer.result().text
    assert answer.result().status_code == 200


def test_no_token_is_lost_doubled_or_moved_when_the_subscription_breaks(
    valkey: Valkey, worker: ScriptedWorker, post: Post
) -> None:
    # No sweep: the renewed subscription has everything read.
    with _api(valkey, sweep_s=600) as api:
        answer = post(api, STREAM)
        worker.claim()
        worker.accept()
        text = "".join(chr(ord("a") + index % 26) for index in range(120))
        num_killed = 0
        for start in range(0, len(text), 20):
            num_killed += worker.redis.client_kill_filter(_type="pubsub")
            worker.say(text[start : start + 20])
        worker.finish()
        assert _text(answer.result(RESULT_WAIT_S)) == text
        assert num_killed > 0


def test_a_job_that_is_gone_from_the_queue_ends_in_an_error(
    api: httpx.Client, worker: ScriptedWorker, post: Post
) -> None:
    answer = post(api, BODY)
    worker.claim()
    worker.redis.delete(keys.job(worker.job_id))
    assert answer.result().status_code == 500
    assert answer.result().json()["error"]["code"] == "worker_lost"


@pytest.mark.parametrize("body", [BODY, STREAM])
def test_the_status_waits_for_the_workers_refusal(
    api: httpx.Client, worker: ScriptedWorker, post: Post, body: dict[str, object]
) -> None:
    answer = post(api, body)
    worker.claim()
    worker.refuse()
    assert answer.result().status_code == 400
    assert answer.result().json()["error"]["param"] == "messages"


def test_a_full_queue_answers_429_and_says_when_to_come_again(
    valkey: Valkey, worker: ScriptedWorker
) -> None:
    settings = {"max_queue_size": 1, "accept_patience_s": 0.05}
    with _api(valkey, **settings) as api, api.stream("POST", CHAT, json=STREAM) as first:
        response = api.post(CHAT, json=STREAM)
        assert first.status_code == 200
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "queue_full"
    assert int(response.headers["retry-after"]) > 0


def test_a_long_wait_is_commented_and_the_answer_still_comes(
    valkey: Valkey, worker: ScriptedWorker, post: Post
) -> None:
    settings = {"accept_patience_s": 0.05, "queue_comment_s": 0.05}
    with (
        _api(valkey, **settings) as api,
        api.stream("POST", CHAT, json=STREAM),
        api.stream("POST", CHAT, json=STREAM) as second,
    ):
        lines = second.iter_lines()
        assert next(lines) == ": queued, position 1"
        worker.claim()
        wait_until(lambda: next(lines) == ": queued, position 0", "the position moves up")
        worker.claim()
        worker.accept()
        worker.say("hi")
        worker.finish()
        rest = "\n".join(lines)
    assert '"content":"h"' in rest
    assert "[DONE]" in rest


def test_a_client_that_leaves_takes_its_waiting_job_off_the_queue(
    valkey: Valkey, worker: ScriptedWorker
) -> None:
    queue = keys.queue(keys.queue_name("tiny"))
    with _api(valkey, accept_patience_s=0.05) as api:
        with api.stream("POST", CHAT, json=STREAM):
            assert worker.redis.llen(queue) == 1
        wait_until(lambda: worker.redis.llen(queue) == 0, "the job is cancelled")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_its_running_job(
    api: httpx.Client, worker: ScriptedWorker, stream: bool
) -> None:
    gone = threading.Event()

    def leave() -> None:
        with pytest.raises(httpx.ReadTimeout):
            api.post(CHAT, json=BODY | {"stream": stream}, timeout=0.5)
        gone.set()

    client = threading.Thread(target=leave)
    client.start()
    worker.claim()
    if not stream:
        worker.accept()
    assert gone.wait(10)
    client.join()
    wait_until(lambda: worker.beat() == {worker.job_id}, "the worker hears of it")


def test_a_job_that_nobody_takes_times_out_and_is_cancelled(
    valkey: Valkey, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.reply_channel.LATE_S", 0.2)
    with _api(valkey, request_timeout=0.2) as api:
        response = api.post(CHAT, json=BODY)
        queue = keys.queue(keys.queue_name("tiny"))
        wait_until(lambda: worker.redis.llen(queue) == 0, "the job is cancelled")
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "timeout"


def test_the_priority_picks_the_queue(valkey: Valkey, worker: ScriptedWorker) -> None:
    with _api(valkey, accept_patience_s=0.05) as api:
        for fields in ({"priority": "interactive"}, {"service_tier": "flex"}):
            with api.stream("POST", CHAT, json=STREAM | fields):
                pass
        wait_until(lambda: worker.redis.dbsize() > 0, "jobs are there")
    name = keys.queue_name("tiny", "batch")
    origins = {
        worker.redis.hget(key, "origin") for key in worker.redis.scan_iter(match=keys.job("*"))
    }
    assert origins == {keys.queue_name("tiny", "interactive").encode(), name.encode()}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, BODY | {"temperature": 9}),
        ("/tokenize", {"model": "tiny"}),
        ("/detokenize", {"model": "tiny"}),
    ],
)
def test_a_tenant_that_asks_too_often_is_told_how_long_to_wait(
    valkey: Valkey, worker: ScriptedWorker, path: str, body: dict[str, object]
) -> None:
    limits = {"rate_limit_requests": 2, "rate_limit_window": 1000}
    with _api(valkey, **limits) as api:
        answers = [api.post(path, json=body) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [400, 400, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == [
        "1", "0", "0",
    ]  # fmt: skip
    assert 490 < int(answers[-1].headers["retry-after"]) <= 500
    assert answers[-1].headers["x-ratelimit-limit-requests"] == "2"


def test_a_tenant_that_asks_for_too_many_tokens_is_told_so_before_anything_runs(
    valkey: Valkey, worker: ScriptedWorker
) -> None:
    limits = {"rate_limit_tokens": 100, "rate_limit_window": 1000}
    asked = {"model": "tiny", "prompt": "x", "max_tokens": 30, "stream": True}
    with _api(valkey, **limits) as api:
        left = []
        for _ in range(3):
            with api.stream("POST", "/v1/completions", json=asked) as answer:
                assert answer.status_code == 200
                left.append(answer.headers["x-ratelimit-remaining-tokens"])
        refused = api.post("/v1/completions", json=asked)
        small = asked | {"max_tokens": 5}
        with api.stream("POST", "/v1/completions", json=small) as answer:
            assert answer.status_code == 200
    assert left == ["70", "40", "10"]
    assert refused.status_code == 429
    assert refused.headers["x-ratelimit-remaining-tokens"] == "10"
    assert 150 < int(refused.headers["retry-after"]) <= 200


def test_the_api_comes_back_with_the_queue(own_valkey: Valkey) -> None:
    worker = ScriptedWorker(own_valkey)
    with _api(own_valkey) as api, ThreadPoolExecutor(1) as pool:
        assert api.get("/ready").status_code == 200
        own_valkey.kill()
        assert api.post(CHAT, json=BODY).status_code == 503
        assert api.get("/ready").status_code == 503
        assert "dfastllm_queue_up 0.0" in api.get("/metrics").text
        own_valkey.start()
        worker.beat()
        wait_until(lambda: api.get("/ready").status_code == 200, "the queue is seen again")
        answer = pool.submit(api.post, CHAT, json=BODY)
        worker.claim()
        worker.accept()
        worker.say("hello")
        worker.finish()
        assert answer.result().json()["choices"][0]["message"]["content"] == "hello"
    worker.redis.close()


@pytest.mark.anyio
async def test_a_job_on_its_way_into_the_queue_is_not_taken_for_lost(
    async_redis: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue = queueing.enqueue

    async def slow_enqueue(*args: Any, **kwargs: Any) -> int:
        await asyncio.sleep(0.3)  # several sweeps
        return await enqueue(*args, **kwargs)

    monkeypatch.setattr(queueing, "enqueue", slow_enqueue)
    gateway = RedisGateway(async_redis, ApiSettings(sweep_s=0.02))
    await gateway.start()
    generation = await gateway.submit(make_job("job-1", api_id=gateway.api_id), "default")
    assert not generation.has_ended
    generation.close()
    await gateway.close()
