"""Dashboard, alerts and autoscaler ask for metrics that there are, in words Prometheus knows."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.parser import text_string_to_metric_families

from api.app import create_app
from api.settings import ApiSettings
from tests.api.fakes import serving
from tests.deploy.manifests import DEPLOY, PLAIN
from tests.engine.engines import load_tiny_models, make_engine
from tests.valkey import Valkey
from worker.job_store import JobStore
from worker.wire.messages import ModelInfo, WorkerInfo

DASHBOARD = DEPLOY / "grafana" / "dashboards" / "dfastllm.json"
PROMETHEUS = DEPLOY / "prometheus"
HISTOGRAM_PARTS = ("_bucket", "_count", "_sum")


def _dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return content


def _rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _queries() -> Iterator[tuple[str, str]]:
    """Yield where each query stands, and the query with Grafana's variables filled in."""
    for panel in _dashboard()["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", "5m").replace("$model", ".*")
            yield f"panel {panel['title']}", query
    for rule in _rules():
        yield f"alert {rule['alert']}", rule["expr"]
    for manifest in PLAIN:
        for trigger in manifest.get("spec", {}).get("triggers", []):
            if trigger["type"] == "prometheus":
                yield f"trigger {trigger['name']}", trigger["metadata"]["query"]


QUERIES = [pytest.param(query, id=place) for place, query in _queries()]


@pytest.fixture(scope="module")
def exported(
    valkey_server: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, set[str]]:
    """What /metrics shows of a real queue and a real engine: each name, with its labels."""
    engine = make_engine(load_tiny_models(tmp_path_factory.mktemp("models")))
    model = ModelInfo("tiny", 128, list(engine.modes), 0, "fp-1")
    with valkey_server.connect() as client:
        client.flushall()
        info = WorkerInfo("w1", model, 4, metrics=engine.metrics())
        JobStore(client, "w1").beat([], info)
    with serving(create_app(ApiSettings(redis_url=valkey_server.url))) as url:
        body = {"model": "nobody", "prompt": "x"}
        httpx.post(f"{url}/v1/completions", json=body)
        text = httpx.get(f"{url}/metrics").text
    return _names(text)


def _names(text: str) -> dict[str, set[str]]:
    names: dict[str, set[str]] = {"up": {"job", "instance"}}
    for family in text_string_to_metric_families(text):
        parts = HISTOGRAM_PARTS if family.type == "histogram" else ("",)
        suffix = "_total" if family.type == "counter" else ""
        for part in parts:
            names[family.name + suffix + part] = {
                label for sample in family.samples for label in sample.labels
            }
    return names


def _selected(expression: Any) -> Iterator[tuple[str, set[str]]]:
    """Yield each metric that a parsed query selects, and the labels that it selects by."""
    if isinstance(expression, promql_parser.VectorSelector):
        yield expression.name, {matcher.name for matcher in expression.matchers.matchers}
        return
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        if (inner := getattr(expression, name, None)) is not None:
            yield from _selected(inner)
    for argument in getattr(expression, "args", None) or []:
        yield from _selected(argument)


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_asks_for_what_metrics_shows(query: str, exported: dict[str, set[str]]) -> None:
    selected = list(_selected(promql_parser.parse(query)))
    assert selected
    for name, labels in selected:
        assert name in exported, name
        # Of what has not happened yet there is no sample, and so no label.
        assert not exported[name] or labels <= exported[name], name


def test_a_query_for_what_nobody_exports_is_noticed(exported: dict[str, set[str]]) -> None:
    parsed = promql_parser.parse('sum(rate(dfastllm_tokens_total{model="x"}[1m])) or vector(0)')
    assert list(_selected(parsed)) == [("dfastllm_tokens_total", {"model"})]
    assert "dfastllm_tokens_total" not in exported


def test_grafana_knows_every_field_of_the_dashboard() -> None:
    register_default_plugins()
    understood = Dashboard.from_json(_dashboard())
    assert _missing(_dashboard(), json.loads(JSONEncoder().encode(understood))) == []


def _missing(given: Any, kept: Any, path: str = "") -> list[str]:
    """Return the paths of what is in `given` and not, or differently, in `kept`."""
    if isinstance(given, dict) and isinstance(kept, dict):
        pairs = [(f"{path}/{key}", value, kept.get(key)) for key, value in given.items()]
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        pairs = [(f"{path}/{i}", *pair) for i, pair in enumerate(zip(given, kept, strict=True))]
    else:
        return [] if given == kept else [path]
    return [lost for where, old, new in pairs for lost in _missing(old, new, where)]


def test_the_dashboard_reads_the_data_source_that_is_provisioned() -> None:
    folder = DASHBOARD.parents[1] / "provisioning" / "datasources"
    (source,) = yaml.safe_load((folder / "prometheus.yml").read_text())["datasources"]
    panels = [panel for panel in _dashboard()["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    ids = [panel["id"] for panel in _dashboard()["panels"]]
    assert len(ids) == len(set(ids))


def test_every_alert_says_how_bad_it_is_and_is_tried_out() -> None:
    tests = yaml.safe_load((PROMETHEUS / "alerts.test.yml").read_text())["tests"]
    tried = [{one["alertname"] for one in test["alert_rule_test"]} for test in tests]
    for rule in _rules():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
    assert tried == [{rule["alert"] for rule in _rules()}] * len(tests)


@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("test", "rules", "alerts.test.yml")],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_agrees(arguments: tuple[str, str, str]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here; queries were parsed, and rules looked at, without it")
    *verb, name = arguments
    done = subprocess.run(
        [promtool, *verb, str(PROMETHEUS / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
