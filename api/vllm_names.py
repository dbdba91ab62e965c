"""The same figures under vLLM's names, so that its dashboards and tools read this server, too.

A name is here only where the figure means what it means there.
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
    "num_queried_tokens": ("prefix_cache_queries", "Prompt tokens looked for in the prefix cache"),
    "num_hit_tokens": ("prefix_cache_hits", "Prompt tokens found there"),
    "num_preemptions": ("num_preemptions", "Sequences that gave their pages back"),
}
_LABELS = ["model_name", "engine"]


def under_vllm_names(families: Iterable[Metric]) -> Iterator[Metric]:
    """Tell what this process counts once more, under vLLM's prefix."""
    for family in families:
        name = family.name.removeprefix(f"{PREFIX}_")
        if name in _SAME:
            renamed = Metric(_VLLM + name, family.documentation, family.type)
            for sample in family.samples:
                suffix = sample.name.removeprefix(family.name)
                renamed.add_sample(_VLLM + name + suffix, sample.labels, sample.value)
            yield renamed


def queue_and_workers(
    models: Iterable[str], queues: dict[str, QueueState], workers: list[WorkerInfo]
) -> Iterator[Metric]:
    """Tell what waits and what the workers do; vLLM's label `engine` is the worker's name."""
    yield _waiting(models, queues, workers)
    running = _gauge("num_requests_running", "Requests that generate", _LABELS)
    usage = _gauge("kv_cache_usage_perc", "Pages that requests hold; 1: all", _LABELS)
    for worker in workers:
        labels = [worker.model.name, worker.name]
        running.add_metric(labels, worker.num_running)
        if num_pages := worker.metrics.get("num_pages"):
            usage.add_metric(labels, worker.metrics.get("num_pages_held", 0.0) / num_pages)
    yield from (running, usage)
    for own, (name, text) in _COUNTED.items():
        counter = CounterMetricFamily(_VLLM + name, text, labels=_LABELS)
        for worker in workers:
            if own in worker.metrics:
                counter.add_metric([worker.model.name, worker.name], worker.metrics[own])
        yield counter


def _waiting(
    models: Iterable[str], queues: dict[str, QueueState], workers: list[WorkerInfo]
) -> Metric:
    """Count what waits in the queue and in the workers: vLLM has but one place for both."""
    waiting = _gauge("num_requests_waiting", "Requests that wait", ["model_name"])
    for model in sorted(set(models)):
        names = keys.queue_names(model)
        queued = sum(queues[name].length for name in names if name in queues)
        held = sum(worker.num_waiting for worker in workers if worker.model.name == model)
        waiting.add_metric([model], queued + held)
    return waiting


def _gauge(name: str, text: str, labels: list[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(_VLLM + name, text, labels=labels)
