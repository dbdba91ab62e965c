"""All settings of the worker, read once from the environment; a bad one stops the start by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from worker.wire.known_settings import PREFIX, check_names
from worker.wire.redis_url import NAME as URL_NAME
from worker.wire.redis_url import RedisUrlError, read_redis_url

Positive = Annotated[int, Meta(ge=1)]
Amount = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]


class SettingsError(ValueError):
    """A setting that cannot be meant; the message names it."""


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`VDIFF_<FIELD>` each; None means that the model, the device or the engine decides."""

    redis_url: str = "redis://127.0.0.1:6379/0"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    model: str | None = None
    ar_verifier_model: str | None = None
    tokenizer: str | None = None
    model_name: str | None = None
    max_model_len: Positive | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    cpu_threads: Positive | None = None
    hybrid_enabled: bool = True
    hybrid_mode: Literal["deer", "spec_diff", "semi_ar", "diffusion", "apd", "ar"] | None = None
    hybrid_draft_size: Amount | None = None
    hybrid_max_draft: Positive | None = None
    cpu_kernels: bool = True
    compile: bool = False
    flash_attention: bool | None = None
    use_8bit: bool = False
    enable_batching: bool = True
    max_batch_size: Positive = 16
    max_step_tokens: Positive | None = None
    kv_cache_mb: Positive | None = None
    prefix_cache: bool = True
    prefix_cache_host_mb: Amount = 0
    prefix_cache_redis_mb: Amount = 0
    prefix_cache_redis_url: str | None = None
    prefix_cache_ttl: Positive = 3600
    prefix_cache_secret: str | None = None
    adaptive_entropy: bool = False
    entropy_high: Annotated[float, Meta(ge=0)] | None = None
    entropy_low: Annotated[float, Meta(ge=0)] | None = None
    diffusion_steps: Positive | None = None
    block_size: Positive | None = None
    enable_apd: bool = True
    apd_max_parallel: Positive | None = None
    apd_threshold: Share | None = None
    result_ttl: Positive = 3600
    failure_ttl: Positive = 86400
    overdue_after: Annotated[float, Meta(ge=0)] = 30.0
    overdue_share: Annotated[float, Meta(gt=0, le=1)] = 0.125
    burst: bool = False
    lease: Seconds = 30.0
    drain_timeout: Annotated[float, Meta(ge=0)] = 20.0
    outage_buffer_mb: Positive = 64
    stream_interval: Annotated[float, Meta(ge=0, le=1000)] = 10.0


def read_settings(environ: Mapping[str, str]) -> WorkerSettings:
    """Return the worker's settings; raises SettingsError naming an unknown or bad one."""
    try:
        check_names(environ)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    given = {
        field.name: _parse(environ[PREFIX + field.name.upper()], field)
        for field in msgspec.structs.fields(WorkerSettings)
        # An empty variable is how compose files and shells say "not set".
        if environ.get(PREFIX + field.name.upper(), "").strip() != ""
    }
    return _checked(WorkerSettings(**given))


def changed_settings(settings: WorkerSettings) -> dict[str, Any]:
    """Return what differs from the defaults, for the log; never what is or holds a secret."""
    return {
        field.name: value
        for field in msgspec.structs.fields(WorkerSettings)
        if field.name not in _SECRET and (value := getattr(settings, field.name)) != field.default
    }


_SECRET = frozenset({"redis_url", "prefix_cache_redis_url", "prefix_cache_secret"})
_TYPES = get_type_hints(WorkerSettings, include_extras=True)


def _parse(text: str, field: msgspec.structs.FieldInfo) -> Any:
    if text == "auto" and field.default is None:
        return None
    try:
        return msgspec.convert(text, _TYPES[field.name], strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{PREFIX}{field.name.upper()}={text!r}: {error}") from None


def _checked(settings: WorkerSettings) -> WorkerSettings:
    for name in ("redis_url", "prefix_cache_redis_url"):
        _check_url(getattr(settings, name), PREFIX + name.upper())
    for name in ("prefix_cache_host_mb", "prefix_cache_redis_mb"):
        if getattr(settings, name) and not settings.prefix_cache:
            full = PREFIX + name.upper()
            raise SettingsError(f"{full}: means nothing with {PREFIX}PREFIX_CACHE=false")
    if settings.hybrid_mode == "apd" and not settings.enable_apd:
        raise SettingsError("VDIFF_HYBRID_MODE=apd and VDIFF_ENABLE_APD=false exclude each other")
    for name in ("entropy_high", "entropy_low"):
        if getattr(settings, name) is not None and not settings.adaptive_entropy:
            raise SettingsError(
                f"{PREFIX}{name.upper()}: means nothing without {PREFIX}ADAPTIVE_ENTROPY=true"
            )
    return settings


def _check_url(url: str | None, name: str) -> None:
    try:
        if url is not None:
            read_redis_url(url)
    except RedisUrlError as error:
        raise SettingsError(str(error).replace(URL_NAME, name)) from None
