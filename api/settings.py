"""The API's settings: read once from the environment, refused by name when they make no sense."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from api.key_ring import Limits, ring_of
from api.webhook_signature import secret_bytes
from worker.wire.known_settings import API, PREFIX, check_names, settings_of
from worker.wire.logs import FORMATS
from worker.wire.redis_url import RedisUrlError, read_redis_url

LOG_LEVELS = ("debug", "info", "warning", "error")


class SettingsError(ValueError):
    """A setting that stops the start; the message names it."""


class ApiSettings(Struct, frozen=True, kw_only=True):
    """Each field is the environment variable `VDIFF_<FIELD>` and the flag `--<field>`."""

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: tuple[str, ...] = ()  # neither these nor a file: open to whoever can connect
    keys_file: str = ""
    cors_origins: tuple[str, ...] = ()
    redis_url: str = "redis://127.0.0.1:6379/0"
    max_queue_size: int = 1000
    max_running_per_key: int = 0  # over all workers and models; 0: any number
    max_queued_per_key: int = 0
    worker_patience: float = 60.0  # seconds without a worker until requests are refused
    request_timeout: float = 300.0  # seconds
    shutdown_grace: float = 3.0  # seconds
    rate_limit_requests: int = 0  # a key and window; 0: off
    rate_limit_tokens: int = 0  # the same
    rate_limit_window: float = 60.0  # seconds
    result_ttl: int = 3600  # seconds
    failure_ttl: int = 86400  # seconds
    log_level: str = "info"
    log_format: str = "text"
    vllm_metrics: bool = True
    job_timeout: float = 86400.0  # seconds, waiting included
    max_queue_time: float = 0.0  # seconds; 0: as long as the request may take
    webhook_secret: str = ""
    webhook_networks: tuple[str, ...] = ()
    files_dir: str = "~/.local/share/dfastllm/files"

    max_body_bytes: int = 16 * 1024 * 1024
    """Not an environment variable, as all below: tests shorten them."""
    accept_patience_s: float = 3.0  # how long a stream waits for the worker before it opens
    queue_comment_s: float = 5.0
    ping_s: float = 15.0
    sweep_s: float = 1.0
    chores_s: float = 1.0  # how often long waits are ended and due webhooks looked for
    webhook_lease_s: float = 60.0
    webhook_timeout_s: float = 15.0
    webhook_pause_s: float = 5.0  # before the second try; four times as long before each further

    def __post_init__(self) -> None:
        """Raise SettingsError naming the first setting that makes no sense."""
        _require(0 <= self.port <= 65535, "PORT", "a port between 0 and 65535", self.port)
        _require(self.max_queue_size > 0, "MAX_QUEUE_SIZE", "above 0", self.max_queue_size)
        limits = {"RUNNING": self.max_running_per_key, "QUEUED": self.max_queued_per_key}
        for what, limit in limits.items():
            _require(limit >= 0, f"MAX_{what}_PER_KEY", "0 (any) or more", limit)
        patience = self.worker_patience
        _require(0 <= patience < math.inf, "WORKER_PATIENCE", "0 or more seconds", patience)
        _positive("REQUEST_TIMEOUT", self.request_timeout)
        _positive("SHUTDOWN_GRACE", self.shutdown_grace)
        _positive("RATE_LIMIT_WINDOW", self.rate_limit_window)
        limit = self.rate_limit_requests
        _require(limit >= 0, "RATE_LIMIT_REQUESTS", "0 (off) or more", limit)
        _positive("JOB_TIMEOUT", self.job_timeout)
        queue_time = self.max_queue_time
        _require(0 <= queue_time < math.inf, "MAX_QUEUE_TIME", "0 (off) or seconds", queue_time)
        self._check_webhooks()
        _require(self.result_ttl > 0, "RESULT_TTL", "above 0", self.result_ttl)
        _require(self.failure_ttl > 0, "FAILURE_TTL", "above 0", self.failure_ttl)
        levels = " or ".join(LOG_LEVELS)
        _require(self.log_level in LOG_LEVELS, "LOG_LEVEL", levels, self.log_level)
        try:
            read_redis_url(self.redis_url)
        except RedisUrlError as error:
            raise SettingsError(str(error)) from None
        forms = " or ".join(FORMATS)
        _require(self.log_format in FORMATS, "LOG_FORMAT", forms, self.log_format)
        tokens = self.rate_limit_tokens
        _require(tokens >= 0, "RATE_LIMIT_TOKENS", "0 (off) or more", tokens)
        self._check_access()

    @property
    def queue_limit_s(self) -> float | None:
        """How long a request may wait that does not say it itself."""
        return self.max_queue_time or None

    def _check_access(self) -> None:
        has_keys = bool(self.api_key or self.keys_file)
        if not has_keys and not is_loopback(self.host):
            raise SettingsError(
                f"VDIFF_HOST is {self.host}, which others can reach, but VDIFF_API_KEY is not set: "
                "set a key, or listen on 127.0.0.1"
            )
        if not has_keys and "*" in self.cors_origins:
            # Any page that somebody reads could use the server of the machine it is read on.
            raise SettingsError("VDIFF_CORS_ORIGINS may be * only where VDIFF_API_KEY is set")
        try:
            ring_of(self.api_key, self.keys_file, Limits())
        except ValueError as error:
            raise SettingsError(f"VDIFF_KEYS_FILE {error}") from None

    def _check_webhooks(self) -> None:
        try:
            if self.webhook_secret:
                secret_bytes(self.webhook_secret)
        except ValueError as error:
            raise SettingsError(f"VDIFF_WEBHOOK_SECRET {error}") from None
        for network in self.webhook_networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise SettingsError(f"VDIFF_WEBHOOK_NETWORKS: {error}") from None


def load_settings(environ: Mapping[str, str]) -> ApiSettings:
    """Read the API's settings; raise SettingsError for an unknown `VDIFF_*` name or a bad value."""
    try:
        check_names(environ)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    values: dict[str, Any] = {}
    for setting in settings_of(API):
        # An empty variable is how compose files and shells say "not set".
        if text := environ.get(setting.name, "").strip():
            field = setting.name.removeprefix(PREFIX).lower()
            values[field] = _parse(setting.name, field, text)
    return ApiSettings(**values)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, or nothing: it may be reachable from anywhere


def _parse(name: str, field: str, text: str) -> object:
    default = getattr(_DEFAULTS, field)
    if isinstance(default, tuple):
        return tuple(key for part in text.split(",") if (key := part.strip()))
    if isinstance(default, str):
        return text.lower() if field in ("log_level", "log_format") else text
    if isinstance(default, bool):
        return _flag(name, text)
    kind = type(default)
    try:
        return kind(text)
    except ValueError:
        words = "a whole number" if kind is int else "a number"
        raise SettingsError(f"{name} must be {words}, not {text!r}") from None


def _flag(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise SettingsError(f"{name} must be true or false, not {text!r}")
    return text.lower() in ("true", "1")


def _positive(name: str, value: float) -> None:
    _require(0 < value < math.inf, name, "a number of seconds above 0", value)


def _require(is_good: bool, name: str, wanted: str, value: object) -> None:
    if not is_good:
        raise SettingsError(f"{PREFIX}{name} must be {wanted}, not {value}")


_DEFAULTS = ApiSettings()
