"""GET /health, /ready, /version and /metrics."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version

from litestar import MediaType, Response, get
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.batches.batch_desk import BatchDesk
from api.errors import UnavailableError
from api.metrics import PREFIX
from api.services import AppServices, Services
from api.vllm_names import queue_and_workers, under_vllm_names
from worker.wire.messages import WorkerInfo
from worker.wire.queue_state import QueueState, StoreMemory

_UNFIT = re.compile(r"[^a-zA-Z0-9_]")


@get("/health", tags=["operation"])
async def health() -> dict[str, str]:
    """Say that this process answers."""
    return {"status": "ok"}


@get("/ready", tags=["operation"])
async def ready(services: AppServices) -> dict[str, str | int]:
    """Say whether a request would be served: 503 while no worker's heartbeat is seen."""
    workers = [one for one in await services.gateway.workers() if not one.is_draining]
    if not workers:
        raise UnavailableError("No worker is alive.")
    return {"status": "ready", "workers": len(workers)}


@get("/load", tags=["operation"])
async def show_load(services: AppServices) -> dict[str, int]:
    """Count the requests that are being worked on, or wait to be, over all workers and queues."""
    workers = await services.gateway.workers()
    held = sum(worker.num_running + worker.num_waiting for worker in workers)
    queued = sum(queue.length for queue in (await services.gateway.queues()).values())
    return {"server_load": held + queued}


@get("/version", tags=["operation"])
async def show_version() -> dict[str, str]:
    try:
        return {"version": version("dfastllm")}
    except PackageNotFoundError:  # run from a checkout
        return {"version": "unknown"}


@get("/metrics", tags=["operation"], media_type=MediaType.TEXT)
async def metrics(services: AppServices) -> Response[bytes]:
    """Show this process's counters, and what queue and workers say now, for Prometheus."""
    own = services.metrics.registry
    families = await _shared(services)
    if services.settings.vllm_metrics:
        families += under_vllm_names(own.collect())
    others = CollectorRegistry()
    others.register(_Fixed(families))
    text = generate_latest(own) + generate_latest(others)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _shared(services: Services) -> list[Metric]:
    """Return what every API process sees alike; only that it is not there, when Redis is away."""
    gateway = services.gateway
    try:
        queues, workers = await gateway.queues(), await gateway.workers()
        families = [
            *_queue_metrics(queues),
            *_memory_metrics(await gateway.store_memory()),
            *_worker_metrics(workers),
            *await _batch_metrics(services.batches),
            GaugeMetricFamily(f"{PREFIX}_queue_up", "Redis answers", value=1),
        ]
        if services.settings.vllm_metrics:
            models = [model.name for model in await gateway.models()]
            families += queue_and_workers(models, queues, workers)
            families += services.fleet.take(workers)
    except UnavailableError:
        return [GaugeMetricFamily(f"{PREFIX}_queue_up", "Redis answers", value=0)]
    return families


class _Fixed(Collector):
    """Metrics that were read just now: prometheus-client asks a collector, it cannot await one."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _queue_metrics(queues: dict[str, QueueState]) -> Iterator[Metric]:
    label = ["queue"]
    depth = GaugeMetricFamily(f"{PREFIX}_queue_depth", "Requests waiting", labels=label)
    age = GaugeMetricFamily(
        f"{PREFIX}_queue_oldest_job_age_seconds", "How long the first has waited", labels=label
    )
    failed = GaugeMetricFamily(
        f"{PREFIX}_queue_failed_jobs", "Jobs in the failed registry", labels=label
    )
    deferred = GaugeMetricFamily(
        f"{PREFIX}_queue_deferred_jobs", "Jobs that wait for others of their key", labels=label
    )
    for name, state in queues.items():
        depth.add_metric([name], state.length)
        age.add_metric([name], state.oldest_age_s)
        failed.add_metric([name], state.num_failed)
        deferred.add_metric([name], state.num_deferred)
    yield from (depth, age, failed, deferred)


def _memory_metrics(memory: StoreMemory | None) -> Iterator[Metric]:
    if memory is not None:
        name = f"{PREFIX}_queue_memory"
        yield GaugeMetricFamily(f"{name}_used_bytes", "Memory of Redis", value=memory.used)
        yield GaugeMetricFamily(f"{name}_max_bytes", "Its limit; 0: none", value=memory.maximum)


async def _batch_metrics(batches: BatchDesk | None) -> list[Metric]:
    if batches is None:
        return []
    gauge = GaugeMetricFamily(f"{PREFIX}_batch_jobs", "Batches not ended", labels=["status"])
    for status, count in (await batches.count_open()).items():
        gauge.add_metric([status], count)
    return [gauge]


def _worker_metrics(workers: list[WorkerInfo]) -> Iterator[Metric]:
    labels = ["model_name", "worker"]
    alive = GaugeMetricFamily(f"{PREFIX}_workers", "Workers alive", labels=["model_name"])
    running = GaugeMetricFamily(f"{PREFIX}_num_requests_running", "Running", labels=labels)
    waiting = GaugeMetricFamily(f"{PREFIX}_num_requests_waiting", "In the worker", labels=labels)
    places = GaugeMetricFamily(f"{PREFIX}_max_batch_size", "Places of a worker", labels=labels)
    draining = GaugeMetricFamily(
        f"{PREFIX}_worker_draining", "Finishes what it has, takes nothing new", labels=labels
    )
    for model in sorted({worker.model.name for worker in workers}):
        alive.add_metric([model], sum(worker.model.name == model for worker in workers))
    for worker in workers:
        values = [worker.model.name, worker.name]
        running.add_metric(values, worker.num_running)
        waiting.add_metric(values, worker.num_waiting)
        places.add_metric(values, worker.max_batch_size)
        draining.add_metric(values, worker.is_draining)
    yield from (alive, running, waiting, places, draining)
    yield from _own_words(workers, labels)


def _own_words(workers: list[WorkerInfo], labels: list[str]) -> Iterator[Metric]:
    """Turn what the engines report into metrics: a name that ends in `_total` is a counter."""
    families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
    for worker in workers:
        for name, value in worker.metrics.items():
            full = f"{PREFIX}_engine_{_UNFIT.sub('_', name)}"
            kind = CounterMetricFamily if full.endswith("_total") else GaugeMetricFamily
            family = families.setdefault(
                full, kind(full, "As the engine reports it", labels=labels)
            )
            family.add_metric([worker.model.name, worker.name], value)
    yield from families.values()
