"""What an operator looks at: readiness, metrics, request ids, the OpenAPI page."""

from __future__ import annotations

import httpx
import pytest

from tests.api.fakes import MODEL, FakeGateway, served
from worker.wire.messages import WorkerInfo

CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": True}


def test_ready_needs_a_live_worker_and_health_does_not() -> None:
    with served(FakeGateway(live=[])) as url:
        assert httpx.get(f"{url}/health").status_code == 200
        response = httpx.get(f"{url}/ready")
    assert response.status_code == 503
    assert response.json()["error"]["message"] == "No worker is alive."


def test_a_worker_that_is_about_to_go_is_none_to_be_ready_with() -> None:
    leaving = WorkerInfo("w1", MODEL, 8, is_draining=True)
    with served(FakeGateway(live=[leaving])) as url:
        assert httpx.get(f"{url}/ready").status_code == 503
        lines = httpx.get(f"{url}/metrics").text.splitlines()
    assert 'dfastllm_worker_draining{model_name="tiny",worker="w1"} 1.0' in lines


def test_a_model_without_workers_is_known_and_unavailable() -> None:
    with served(FakeGateway(served=False)) as url:
        answer = httpx.post(url + CHAT, json=BODY)
        unknown = httpx.post(url + CHAT, json=BODY | {"model": "other"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "15")
    assert unknown.status_code == 404


def test_metrics_count_what_happened() -> None:
    with served(FakeGateway()) as url:
        httpx.post(url + CHAT, json=BODY)
        httpx.post(url + CHAT, json=BODY | {"temperature": 9})
        lines = set(httpx.get(f"{url}/metrics").text.splitlines())
    post = f'endpoint="{CHAT}",method="POST"'
    per_position = 'spec_decode_num_accepted_tokens_per_pos_total{model_name="tiny",position="1"}'
    for line in (
        f'dfastllm_http_requests_total{{{post},status="200"}} 1.0',
        f'dfastllm_http_requests_total{{{post},status="400"}} 1.0',
        f"dfastllm_{per_position} 1.0",
        'dfastllm_request_success_total{finished_reason="stop",model_name="tiny"} 1.0',
        'dfastllm_time_to_first_token_seconds_count{model_name="tiny"} 1.0',
        'dfastllm_inter_token_latency_seconds_count{model_name="tiny"} 2.0',
        'dfastllm_prompt_tokens_total{model_name="tiny"} 5.0',
        'dfastllm_prompt_tokens_cached_total{model_name="tiny"} 4.0',
        'dfastllm_generation_tokens_total{model_name="tiny"} 3.0',
        'dfastllm_spec_decode_num_drafts_total{model_name="tiny"} 2.0',
        'dfastllm_requests_in_flight{model_name="tiny"} 0.0',
        'dfastllm_queue_depth{queue="tiny.default"} 3.0',
        'dfastllm_queue_oldest_job_age_seconds{queue="tiny.default"} 1.5',
        'dfastllm_queue_failed_jobs{queue="tiny.default"} 2.0',
        'dfastllm_queue_deferred_jobs{queue="tiny.default"} 4.0',
        "dfastllm_queue_memory_used_bytes 1000.0",
        "dfastllm_queue_memory_max_bytes 4000.0",
        'dfastllm_workers{model_name="tiny"} 1.0',
        'dfastllm_engine_steps_total{model_name="tiny",worker="w1"} 3.0',
        "dfastllm_queue_up 1.0",
    ):
        assert line in lines, line


@pytest.mark.parametrize("path", ["/health", "/nowhere", CHAT])
def test_every_answer_has_a_request_id(http: httpx.Client, path: str) -> None:
    assert http.get(path).headers["x-request-id"].startswith("req_")


def test_a_clients_own_request_id_is_kept_unless_it_is_odd(http: httpx.Client) -> None:
    answer = http.get("/health", headers={"X-Request-Id": "trace-1"})
    assert answer.headers["x-request-id"] == "trace-1"
    answer = http.get("/health", headers={"X-Request-Id": "a b"})
    assert answer.headers["x-request-id"].startswith("req_")


def test_the_openapi_page_describes_the_bodies(http: httpx.Client) -> None:
    page = http.get("/schema/openapi.json").json()
    body = page["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "messages" in body["required"]
    assert "role" in body["properties"]["messages"]["items"]["properties"]
