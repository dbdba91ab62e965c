"""Questions about a tokenizer, asked over HTTP and answered by real worker processes."""

from __future__ import annotations

import httpx
import pytest
import redis

import api.gateway
from api.app import create_app
from api.settings import ApiSettings
from tests.api.fakes import serving
from tests.api.scripted_worker import wait_until
from tests.valkey import Valkey
from tests.worker_bench import MODEL, make_job, put, running_worker, wait_for_worker
from worker.wire import keys, questions
from worker.wire.questions import Detokenize, Question

TEXT = "héllo"


def test_a_full_worker_answers_and_of_two_workers_one(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    with (
        running_worker(valkey, "w1", step_s=0.02),
        running_worker(valkey, "w2", step_s=0.02),
        serving(create_app(ApiSettings(redis_url=valkey.url))) as url,
    ):
        wait_for_worker(redis_client, "w1")
        wait_for_worker(redis_client, "w2")
        put(valkey, *(make_job(f"job-{number}", max_tokens=400) for number in range(40)))
        redis_client.rpush(keys.questions(MODEL), b"no question")
        for _ in range(10):
            tokens = httpx.post(f"{url}/tokenize", json={"prompt": TEXT}, timeout=20).json()
            assert bytes(tokens["tokens"]).decode() == TEXT
            body = {"tokens": tokens["tokens"]}
            assert httpx.post(f"{url}/detokenize", json=body).json() == {"prompt": TEXT}
        assert redis_client.exists(keys.questions(MODEL)) == 0


def test_without_a_worker_the_question_is_given_up_and_forgotten(
    valkey: Valkey, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.gateway, "ASK_AGAIN_S", 0.05)
    with serving(create_app(ApiSettings(redis_url=valkey.url))) as url:
        with running_worker(valkey, "w1"):
            wait_until(lambda: httpx.get(f"{url}/ready").status_code == 200, "it is ready")
        reply = httpx.post(f"{url}/tokenize", json={"prompt": TEXT, "model": MODEL})
    assert reply.status_code == 503, reply.text
    assert "answers" in reply.text
    assert "Retry-After" in reply.headers
    assert 0 < redis_client.ttl(keys.questions(MODEL)) <= questions.KEPT_S


def test_a_worker_takes_a_few_at_a_time(redis_client: redis.Redis) -> None:
    for number in range(questions.MAX_TAKEN + 1):
        question = Question(f"q{number}", "api", Detokenize([number]))
        redis_client.rpush(keys.questions("m"), questions._encode(question))
    assert len(questions.take(redis_client, "m")) == questions.MAX_TAKEN
    assert [one.question_id for one in questions.take(redis_client, "m")] == ["q8"]
    assert questions.take(redis_client, "m") == []
