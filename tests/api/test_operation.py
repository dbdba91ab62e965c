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


def test_the_same_figures_are_there_under_vllms_names() -> None:
    own = {
        "num_pages": 8, "num_pages_held": 2, "prefix_cache_queries_total": 7, "num_preemptions": 1
    }  # fmt: skip
    worker = WorkerInfo("w1", MODEL, 8, num_running=2, num_waiting=1, metrics=own)
    with served(FakeGateway(live=[worker])) as url:
        httpx.post(url + CHAT, json=BODY | {"max_tokens": 40})
        lines = set(httpx.get(f"{url}/metrics").text.splitlines())
    for line in (
        'vllm:request_success_total{engine="0",finished_reason="stop",model_name="tiny"} 1.0',
        'vllm:generation_tokens_total{engine="0",model_name="tiny"} 3.0',
        "# TYPE vllm:time_to_first_token_seconds histogram",
        'vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="tiny"} 1.0',
        'vllm:time_to_first_token_seconds_count{engine="0",model_name="tiny"} 1.0',
        'vllm:request_queue_time_seconds_sum{engine="0",model_name="tiny"} 0.5',
        'vllm:request_prefill_time_seconds_sum{engine="0",model_name="tiny"} 0.25',
        'vllm:request_decode_time_seconds_sum{engine="0",model_name="tiny"} 1.0',
        'vllm:request_inference_time_seconds_sum{engine="0",model_name="tiny"} 1.25',
        'vllm:request_time_per_output_token_seconds_sum{engine="0",model_name="tiny"} 0.5',
        'vllm:request_params_max_tokens_sum{engine="0",model_name="tiny"} 40.0',
        'vllm:request_params_n_sum{engine="0",model_name="tiny"} 1.0',
        'vllm:num_requests_running{engine="0",model_name="tiny"} 2.0',
        'vllm:num_requests_waiting{engine="0",model_name="tiny"} 4.0',
        'vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25',
        'vllm:prefix_cache_queries_total{engine="0",model_name="tiny"} 7.0',
        'vllm:num_preemptions_total{engine="0",model_name="tiny"} 1.0',
    ):
        assert line in lines, line


def test_what_a_worker_counted_stays_counted_when_it_leaves() -> None:
    def worker(name: str, num_hits: float) -> WorkerInfo:
        return WorkerInfo(name, MODEL, 8, metrics={"prefix_cache_hits_total": num_hits})

    gateway = FakeGateway(live=[worker("w1", 5), worker("w2", 7)])
    sums = []
    with served(gateway) as url:
        for live in ([], [worker("w2", 9)], [worker("w3", 1)], [worker("w3", 1), worker("w2", 9)]):
            text = httpx.get(f"{url}/metrics").text
            name = 'vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} '
            sums += [float(line.split()[1]) for line in text.splitlines() if line.startswith(name)]
            gateway.live = live
    assert sums == [12.0, 12.0, 14.0, 15.0]


def test_time_per_token_is_told_only_where_one_choice_had_the_time() -> None:
    with served(FakeGateway()) as url:
        httpx.post(url + CHAT, json=BODY | {"n": 2})
        text = httpx.get(f"{url}/metrics").text
    assert "dfastllm_request_decode_time_seconds_count" in text
    assert "dfastllm_request_time_per_output_token_seconds_count" not in text


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
