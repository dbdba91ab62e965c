"""The same figures under vLLM's names, so that its dashboards and tools read this server, too.

A name is here only where the figure means what it means there. The label `engine`, by which newer
dashboards select everywhere, is always 0: a request is not counted by the worker that had it, so
all workers of a model are one engine here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from api.metrics import PREFIX
from worker.wire import keys
from worker.wire.messages import WorkerInfo
from worker.wire.queue_state import QueueState

_VLLM = "vllm:"
# Of our own names, without their prefix: those that are vLLM's as well.
_SAME = frozenset(
    {
        "e2e_request_latency_seconds",
        "generation_tokens",
        "inter_token_latency_seconds",
        "prompt_tokens",
        "prompt_tokens_cached",
        "request_decode_time_seconds",
        "request_generation_tokens",
        "request_inference_time_seconds",
        "request_max_num_generation_tokens",
        "request_params_max_tokens",
        "request_params_n",
        "request_prefill_time_seconds",
        "request_prompt_tokens",
        "request_queue_time_seconds",
        "request_success",
        "request_time_per_output_token_seconds",
        "spec_decode_num_accepted_tokens",
        "spec_decode_num_accepted_tokens_per_pos",
        "spec_decode_num_draft_tokens",
        "spec_decode_num_drafts",
        "time_to_first_token_seconds",
    }
)
# What engines report, by their names and by vLLM's.
_COUNTED = {
    "prefix_cache_queries_total": ("prefix_cache_queries", "Prompt tokens looked for in a worker"),
    "prefix_cache_hits_total": ("prefix_cache_hits", "Prompt tokens that a worker had"),
    "external_prefix_cache_queries_total": (
        "external_prefix_cache_queries",
        "Prompt tokens looked for in the shared store",
    ),
    "external_prefix_cache_hits_total": (
        "external_prefix_cache_hits",
        "Prompt tokens that the shared store had",
    ),
    "num_preemptions": ("num_preemptions", "Sequences that gave their pages back"),
}
_LABELS = ["model_name", "engine"]
_ENGINE = "0"
_MAX_REMEMBERED = 10_000  # figures of workers, most of them gone; far more than live at once


def under_vllm_names(families: Iterable[Metric]) -> Iterator[Metric]:
    """Tell what this process counts once more, under vLLM's prefix."""
    for family in families:
        name = family.name.removeprefix(f"{PREFIX}_")
        if name in _SAME:
            renamed = Metric(_VLLM + name, family.documentation, family.type)
            for sample in family.samples:
                suffix = sample.name.removeprefix(family.name)
                labels = {**sample.labels, "engine": _ENGINE}
                renamed.add_sample(_VLLM + name + suffix, labels, sample.value)
            yield renamed


class FleetCounters:
    """Sums over a model's workers that only grow, though workers leave and their figures with them.

    What a worker counts between our last look and its end is lost.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], float] = {}  # by worker and figure, the last one last
        self._totals: dict[str, dict[str, float]] = {name: {} for name in _COUNTED}

    def take(self, workers: Iterable[WorkerInfo]) -> Iterator[Metric]:
        """Add what the workers have counted since the last look; return the sums."""
        for worker in workers:
            for name in _COUNTED.keys() & worker.metrics.keys():
                self._add(worker, name)
        for name, (vllm_name, text) in _COUNTED.items():
            counter = CounterMetricFamily(_VLLM + vllm_name, text, labels=_LABELS)
            for model, total in self._totals[name].items():
                counter.add_metric([model, _ENGINE], total)
            yield counter

    def _add(self, worker: WorkerInfo, name: str) -> None:
        value, key = worker.metrics[name], (worker.name, name)
        before = self._seen.pop(key, 0.0)
        self._seen[key] = value
        totals, model = self._totals[name], worker.model.name
        totals[model] = totals.get(model, 0.0) + value - (before if before <= value else 0.0)
        if len(self._seen) > _MAX_REMEMBERED:
            del self._seen[next(iter(self._seen))]


def queue_and_workers(
    models: Iterable[str], queues: dict[str, QueueState], workers: list[WorkerInfo]
) -> Iterator[Metric]:
    """Tell what waits and what runs of each model, in its queues and all of its workers."""
    running = _gauge("num_requests_running", "Requests that generate")
    waiting = _gauge("num_requests_waiting", "Requests that wait")
    usage = _gauge("kv_cache_usage_perc", "Pages that requests hold; 1: all")
    for model in sorted(set(models)):
        own = [worker for worker in workers if worker.model.name == model]
        queued = sum(queues[name].length for name in keys.queue_names(model) if name in queues)
        labels = [model, _ENGINE]
        running.add_metric(labels, sum(worker.num_running for worker in own))
        waiting.add_metric(labels, queued + sum(worker.num_waiting for worker in own))
        num_pages = sum(worker.metrics.get("num_pages", 0.0) for worker in own)
        if num_pages:
            num_held = sum(worker.metrics.get("num_pages_held", 0.0) for worker in own)
            usage.add_metric(labels, num_held / num_pages)
    yield from (running, waiting, usage)


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(_VLLM + name, text, labels=_LABELS)
