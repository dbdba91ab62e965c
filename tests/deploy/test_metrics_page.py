"""docs/metrics.md names every metric that there is, with its type and labels, and no other."""

from __future__ import annotations

import re
from typing import NamedTuple

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.app import create_app
from api.settings import ApiSettings
from tests.api.fakes import FakeGateway, served, serving
from tests.deploy.manifests import ROOT
from tests.engine.engines import load_tiny_models, make_engine
from tests.valkey import Valkey
from worker.job_store import JobStore
from worker.settings import WorkerSettings
from worker.shared_prefixes import shared_prefixes
from worker.wire.messages import ModelInfo, WorkerInfo

ROW = re.compile(r"^\| `(?P<name>[a-z0-9_:<>]+)` \| (?P<type>\w+) \| (?P<labels>.*?) ?\| \S")
PLACEHOLDERS = {"<mode>": "(deer|spec_diff)", "<n>": "[0-9]+"}

# By prometheus_grafana/grafana.json and dashboards/grafana/vllm_speculative_decoding.json in
# examples/observability of vllm-project/vllm.
ASKED_BY_VLLMS_DASHBOARDS = (
    "e2e_request_latency_seconds", "generation_tokens_total", "inter_token_latency_seconds",
    "kv_cache_usage_perc", "num_requests_running", "num_requests_waiting", "prompt_tokens_total",
    "request_decode_time_seconds", "request_generation_tokens",
    "request_max_num_generation_tokens", "request_prefill_time_seconds", "request_prompt_tokens",
    "request_queue_time_seconds", "request_success_total", "spec_decode_num_accepted_tokens_total",
    "spec_decode_num_accepted_tokens_per_pos_total", "spec_decode_num_draft_tokens_total",
    "spec_decode_num_drafts_total", "time_to_first_token_seconds",
)  # fmt: skip


class Shown(NamedTuple):
    type: str
    labels: frozenset[str] | None  # None: no series of it yet


@pytest.fixture(scope="module")
def page() -> dict[str, Shown]:
    rows: dict[str, Shown] = {}
    for line in (ROOT / "docs" / "metrics.md").read_text().splitlines():
        if (found := ROW.match(line)) is not None:
            assert found["name"] not in rows
            labels = frozenset(re.findall(r"`(\w+)`", found["labels"]))
            rows[found["name"]] = Shown(found["type"], labels)
    return rows


@pytest.fixture(scope="module")
def exported(valkey_server: Valkey, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shown]:
    """All of a real queue, a real engine, and an API that has answered something."""
    engine = make_engine(load_tiny_models(tmp_path_factory.mktemp("models")))
    worker_settings = WorkerSettings(
        redis_url=valkey_server.url, prefix_cache_redis_mb=1, prefix_cache_secret="x" * 32
    )
    model = ModelInfo("tiny", 128, list(engine.modes), 0, "fp-1")
    with valkey_server.connect() as client:
        client.flushall()
        with shared_prefixes(engine, worker_settings):
            info = WorkerInfo("w1", model, 4, metrics=engine.metrics())
        JobStore(client, "w1").beat([], info)
    settings = ApiSettings(
        redis_url=valkey_server.url, files_dir=str(tmp_path_factory.mktemp("files"))
    )
    with serving(create_app(settings)) as url:
        shown = _read(httpx.get(f"{url}/metrics").text)
    with served(FakeGateway()) as url:
        body = {"model": "tiny", "prompt": "x", "stream": True, "max_tokens": 3}
        httpx.post(f"{url}/v1/completions", json=body)
        busy = _read(httpx.get(f"{url}/metrics").text)
    with_series = {name: one for name, one in busy.items() if one.labels is not None}
    return shown | {name: one for name, one in with_series.items() if name in shown}


def _read(text: str) -> dict[str, Shown]:
    shown = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        shown[name] = Shown(family.type, frozenset(labels) if family.samples else None)
    return shown


def _row_of(name: str, page: dict[str, Shown]) -> str | None:
    for row in page:
        pattern = row
        for placeholder, meaning in PLACEHOLDERS.items():
            pattern = pattern.replace(placeholder, meaning)
        if re.fullmatch(pattern, name):
            return row
    return None


def test_every_metric_has_its_row(page: dict[str, Shown], exported: dict[str, Shown]) -> None:
    assert len(exported) > 100
    wrong = []
    for name, shown in exported.items():
        row = _row_of(name, page)
        written = page.get(row or "")
        same_labels = written is not None and shown.labels in (None, written.labels)
        if written is None or written.type != shown.type or not same_labels:
            wrong.append((name, shown, written))
    assert not wrong


def test_every_row_has_its_metric(page: dict[str, Shown], exported: dict[str, Shown]) -> None:
    assert set(page) - {_row_of(name, page) for name in exported} == set()


def test_what_vllms_dashboards_ask_for_is_there_with_the_labels_that_they_select_by(
    exported: dict[str, Shown],
) -> None:
    for name in ASKED_BY_VLLMS_DASHBOARDS:
        shown = exported[f"vllm:{name}"]
        # Of what has not happened yet there is no series, and so no label.
        assert shown.labels is None or {"model_name", "engine"} <= shown.labels, name


def test_vllms_names_are_there_unless_they_are_unwanted() -> None:
    with served(FakeGateway(), vllm_metrics=False) as url:
        assert "vllm:" not in httpx.get(f"{url}/metrics").text
    with served(FakeGateway()) as url:
        assert "vllm:" in httpx.get(f"{url}/metrics").text
