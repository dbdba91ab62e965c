"""Settings: what stops the start, and the name it stops with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from api.settings import SettingsError, load_settings
from worker.wire.known_settings import API, settings_of

KEY = {"VDIFF_API_KEY": "k"}


def test_everything_has_a_default_that_only_this_machine_can_reach() -> None:
    settings = load_settings({})
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)


def test_every_setting_of_the_api_is_read(tmp_path: Path) -> None:
    keys_file = tmp_path / "keys.toml"
    keys_file.write_text(f'[[keys]]\nsha256 = "{"a" * 64}"\n')
    environ = {
        "VDIFF_HOST": "0.0.0.0", "VDIFF_PORT": "0", "VDIFF_API_KEY": "a, b,",
        "VDIFF_REDIS_URL": "redis://u",
        "VDIFF_MAX_QUEUE_SIZE": "2", "VDIFF_REQUEST_TIMEOUT": "2.5",
        "VDIFF_MAX_RUNNING_PER_KEY": "7", "VDIFF_MAX_QUEUED_PER_KEY": "8",
        "VDIFF_WORKER_PATIENCE": "0",
        "VDIFF_RATE_LIMIT_REQUESTS": "3", "VDIFF_RATE_LIMIT_WINDOW": "4", "VDIFF_RESULT_TTL": "5",
        "VDIFF_FAILURE_TTL": "6", "VDIFF_LOG_LEVEL": "DEBUG",
        "VDIFF_JOB_TIMEOUT": "7", "VDIFF_MAX_QUEUE_TIME": "8",
        "VDIFF_WEBHOOK_SECRET": "x" * 24, "VDIFF_WEBHOOK_NETWORKS": "10.0.0.0/8, ::1",
        "VDIFF_SHUTDOWN_GRACE": "4.5", "VDIFF_FILES_DIR": "/f", "VDIFF_KEYS_FILE": str(keys_file),
        "VDIFF_CORS_ORIGINS": "https://a, https://b", "VDIFF_RATE_LIMIT_TOKENS": "9",
        "VDIFF_LOG_FORMAT": "JSON", "VDIFF_VLLM_METRICS": "False",
    }  # fmt: skip
    assert set(environ) == {setting.name for setting in settings_of(API)}
    settings = load_settings(environ)
    assert settings.api_key == ("a", "b")
    assert settings.request_timeout == 2.5
    assert settings.log_level == "debug"
    assert (settings.result_ttl, settings.failure_ttl, settings.max_queue_size) == (5, 6, 2)
    assert (settings.rate_limit_requests, settings.rate_limit_window) == (3, 4.0)
    assert (settings.max_running_per_key, settings.max_queued_per_key) == (7, 8)
    assert settings.worker_patience == 0
    assert (settings.job_timeout, settings.max_queue_time, settings.queue_limit_s) == (7, 8, 8)
    assert settings.webhook_secret == "x" * 24
    assert (settings.files_dir, settings.keys_file) == ("/f", str(keys_file))
    assert settings.cors_origins == ("https://a", "https://b")
    assert settings.rate_limit_tokens == 9
    assert settings.shutdown_grace == 4.5
    assert settings.log_format == "json"
    assert settings.vllm_metrics is False
    assert settings.webhook_networks == ("10.0.0.0/8", "::1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VDIFF_PORT", "http"),
        ("VDIFF_PORT", "65536"),
        ("VDIFF_MAX_QUEUE_SIZE", "0"),
        ("VDIFF_REQUEST_TIMEOUT", "nan"),
        ("VDIFF_REQUEST_TIMEOUT", "inf"),
        ("VDIFF_REQUEST_TIMEOUT", "-1"),
        ("VDIFF_RATE_LIMIT_REQUESTS", "-1"),
        ("VDIFF_RATE_LIMIT_WINDOW", "0"),
        ("VDIFF_MAX_RUNNING_PER_KEY", "-1"),
        ("VDIFF_MAX_QUEUED_PER_KEY", "many"),
        ("VDIFF_WORKER_PATIENCE", "-1"),
        ("VDIFF_RESULT_TTL", "0"),
        ("VDIFF_FAILURE_TTL", "1.5"),
        ("VDIFF_LOG_LEVEL", "loud"),
        ("VDIFF_LOG_FORMAT", "xml"),
        ("VDIFF_VLLM_METRICS", "maybe"),
        ("VDIFF_RATE_LIMIT_TOKENS", "-1"),
        ("VDIFF_CORS_ORIGINS", "*"),
        ("VDIFF_PROT", "8080"),
    ],
)
def test_a_bad_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        load_settings({name: value})


def test_the_workers_settings_and_strangers_are_let_be() -> None:
    load_settings({"VDIFF_MAX_BATCH_SIZE": "4", "PATH": "/bin", "VDIFF_PORT": ""})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_a_public_address_needs_a_key(host: str) -> None:
    with pytest.raises(SettingsError, match=r"VDIFF_HOST.*VDIFF_API_KEY"):
        load_settings({"VDIFF_HOST": host})
    load_settings({"VDIFF_HOST": host} | KEY)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    load_settings({"VDIFF_HOST": host})


def test_the_command_stops_with_the_settings_name_and_no_trace() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "api", "--max-queue-size", "many"],
        capture_output=True,
        text=True,
        env={**os.environ, "VDIFF_PORT": "8080"},
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "VDIFF_MAX_QUEUE_SIZE must be a whole number, not 'many'\n"
