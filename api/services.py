"""What every handler may need, made once by `api.app` and kept in the application's state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from litestar.connection import ASGIConnection
from litestar.di import NamedDependency

from api.batches.batch_desk import BatchDesk
from api.gateway import GenerationGateway
from api.job_desk import JobDesk
from api.key_ring import KeyRing
from api.metrics import ApiMetrics
from api.rate_limit import RateLimiter
from api.response_api.desk import ResponseDesk
from api.settings import ApiSettings
from api.vllm_names import FleetCounters


@dataclass(frozen=True, slots=True)
class Services:
    settings: ApiSettings
    gateway: GenerationGateway
    metrics: ApiMetrics
    keys: KeyRing
    rate_limiter: RateLimiter | None = None
    jobs: JobDesk | None = None
    responses: ResponseDesk | None = None
    batches: BatchDesk | None = None
    fleet: FleetCounters = field(default_factory=FleetCounters)


AppServices: TypeAlias = NamedDependency[Services]
"""How a handler asks for them, as its argument `services`."""


def services_of(connection: ASGIConnection[Any, Any, Any, Any]) -> Services:
    services = connection.app.state.services
    assert isinstance(services, Services)
    return services
