"""One request is one trace, across API and workers, in a real collector's hands."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.api.scripted_worker import wait_until
from tests.otlp_receiver import ReceivedSpan, Receiver, receiving
from tests.stack import api_process, wait_until_ready
from tests.valkey import Valkey
from tests.worker_bench import running_worker

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
SECRET = "nobody may read this"
SERVER, CONSUMER = 2, 5
POST = "POST /v1/completions"
RUN = "text_completion fake"
WAIT_S = 30.0


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        yield receiver


@contextmanager
def ready_api(server: Valkey) -> Iterator[str]:
    with api_process(server) as (url, _):
        wait_until_ready(url)
        yield url


def _ask(url: str, max_tokens: int = 12, **more: object) -> httpx.Response:
    body = {"model": "fake", "prompt": SECRET, "max_tokens": max_tokens, **more}
    headers = {**TRACEPARENT, "Authorization": f"Bearer {SECRET}"}
    return httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=60)


@contextmanager
def _streaming(url: str) -> Iterator[Iterator[str]]:
    body = {"model": "fake", "prompt": SECRET, "max_tokens": 60, "stream": True}
    with httpx.stream(
        "POST", f"{url}/v1/completions", json=body, headers=TRACEPARENT, timeout=60
    ) as answer:
        yield answer.iter_lines()


def _wait_for(receiver: Receiver, name: str, count: int = 1) -> list[ReceivedSpan]:
    wait_until(lambda: len(receiver.named(name)) >= count, f"{count} of {name}", WAIT_S)
    return receiver.named(name)


@pytest.fixture
def path(valkey: Valkey, receiver: Receiver) -> Iterator[str]:
    with running_worker(valkey, "w1", step_s=0.005), ready_api(valkey) as url:
        yield url


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_one_trace_from_the_clients_span_to_the_decoding(
    path: str, receiver: Receiver, stream: bool
) -> None:
    job_id = _ask(path, stream=stream).headers["x-job-id"]
    (request,) = _wait_for(receiver, POST)
    (run,) = _wait_for(receiver, RUN)
    (queue,), (prefill,), (decode,) = (
        receiver.named(name) for name in ("queue", "prefill", "decode")
    )
    assert {span.trace_id for span in receiver.spans} == {TRACE}
    assert (request.parent_id, request.kind) == (PARENT, SERVER)
    assert {queue.parent_id, run.parent_id} == {request.span_id}
    assert {prefill.parent_id, decode.parent_id} == {run.span_id}
    assert run.kind == CONSUMER
    assert request.start_s <= queue.start_s <= queue.end_s <= prefill.end_s < decode.end_s
    assert (prefill.start_s, prefill.end_s, decode.end_s) == (
        run.start_s, decode.start_s, run.end_s
    )  # fmt: skip
    assert (request.service, run.service, run.instance) == ("dfastllm-api", "dfastllm-worker", "w1")
    assert request.attributes["http.route"] == "/v1/completions"
    assert request.attributes["http.response.status_code"] == 200
    assert not any(span.is_error for span in receiver.spans)
    assert run.attributes == run.attributes | {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": "fake",
        "gen_ai.request.max_tokens": 12,
        "gen_ai.request.stream": stream,
        "gen_ai.response.id": job_id,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": len(SECRET),
        "gen_ai.usage.output_tokens": 12,
        "dfastllm.mode": "deer",
        "dfastllm.num_draft_tokens": 24,
        "dfastllm.num_accepted_draft_tokens": 12,
        "dfastllm.attempt": 1,
        "dfastllm.outcome": "finished",
    }


def test_no_span_holds_a_prompt_an_answer_or_a_key(path: str, receiver: Receiver) -> None:
    answer = _ask(path, 24).json()["choices"][0]["text"]
    messages = [{"role": "user", "content": SECRET}]
    httpx.post(f"{path}/v1/chat/completions", json={"model": "fake", "messages": messages, "n": 0})
    _wait_for(receiver, RUN)
    _wait_for(receiver, "POST /v1/chat/completions")
    assert receiver.bodies
    for body in receiver.bodies:
        assert SECRET.encode() not in body
        assert answer.encode() not in body


def test_what_the_worker_refuses_and_what_breaks_it_ends_its_run(
    path: str, receiver: Receiver
) -> None:
    assert _ask(path, 5000).status_code == 400
    (run,) = _wait_for(receiver, RUN)
    assert (run.attributes["dfastllm.outcome"], run.is_error) == ("context_length_exceeded", False)
    boom = {"model": "fake", "prompt": "boom", "max_tokens": 3}
    assert httpx.post(f"{path}/v1/completions", json=boom, timeout=60).status_code == 500
    (broken,) = _wait_for(receiver, POST, 2)[1:]
    assert (broken.attributes["error.type"], broken.is_error) == ("500", True)
    assert broken.trace_id != TRACE
    _wait_for(receiver, RUN, 4)
    broken_runs = receiver.named(RUN)[1:]
    assert [
        (one.attributes["dfastllm.outcome"], one.attributes["error.type"]) for one in broken_runs
    ] == [("engine_error", "engine_error")] * 2 + [("failed", "engine_error")]
    assert all(one.is_error for one in broken_runs)


def test_a_takeover_is_a_second_run_in_the_same_trace(valkey: Valkey, receiver: Receiver) -> None:
    with (
        running_worker(valkey, "w1", step_s=0.05, lease=1.5, drain_timeout=0) as first,
        ready_api(valkey) as url,
    ):
        with _streaming(url) as lines:
            next(lines)
            first.send_signal(signal.SIGTERM)
            with running_worker(valkey, "w2", lease=1.5):
                assert "data: [DONE]" in list(lines)
                runs = _wait_for(receiver, RUN, 2)
        (request,) = _wait_for(receiver, POST)
    assert [(run.instance, run.attributes["dfastllm.outcome"]) for run in runs] == [
        ("w1", "released"),
        ("w2", "finished"),
    ]
    assert {(run.trace_id, run.parent_id) for run in runs} == {(TRACE, request.span_id)}
    assert runs[0].end_s <= runs[1].start_s


def test_a_killed_workers_job_goes_on_in_the_same_trace(valkey: Valkey, receiver: Receiver) -> None:
    with running_worker(valkey, "w1", step_s=0.05, lease=1.5) as first, ready_api(valkey) as url:
        with _streaming(url) as lines:
            (queue,) = _wait_for(receiver, "queue")
            next(lines)
            first.kill()
            with running_worker(valkey, "w2", lease=1.5):
                assert "data: [DONE]" in list(lines)
                (run,) = _wait_for(receiver, RUN)
        (request,) = _wait_for(receiver, POST)
    assert (queue.instance, run.instance, run.attributes["dfastllm.attempt"]) == ("w1", "w2", 2)
    assert {queue.parent_id, run.parent_id} == {request.span_id}
    assert run.trace_id == queue.trace_id == TRACE


def test_a_collector_that_is_away_costs_no_answer(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: refused
        port = nobody.getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        with running_worker(valkey, "w1") as worker, ready_api(valkey) as url:
            for _ in range(3):
                assert _ask(url).status_code == 200
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(WAIT_S) == 0


@pytest.mark.parametrize("switch", [{}, {"OTEL_SDK_DISABLED": "true"}])
def test_where_nobody_asks_nothing_of_it_is_imported(switch: dict[str, str]) -> None:
    code = (
        "import sys, api.__main__, worker.service\n"
        "from worker.wire.tracing import open_tracing\n"
        "assert open_tracing('api', 'a1') is None\n"
        "assert 'worker.wire.otel' not in sys.modules\n"
        # The Redis client imports parts of the SDK by itself, where it is installed.
        "assert not [name for name in sys.modules if 'opentelemetry.exporter' in name]\n"
    )
    environ = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}
    if switch:
        switch = {**switch, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    subprocess.run([sys.executable, "-c", code], env={**environ, **switch}, check=True)


def test_without_the_extra_the_server_says_so_and_starts() -> None:
    code = (
        "import sys, logging\n"
        "sys.modules['opentelemetry'] = None\n"
        "import api.__main__, worker.service\n"
        "logging.basicConfig()\n"
        "from worker.wire.tracing import open_tracing\n"
        "assert open_tracing('api', 'a1') is None\n"
    )
    environ = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, check=True, capture_output=True, text=True
    )
    assert "dfastllm[otel]" in done.stderr
