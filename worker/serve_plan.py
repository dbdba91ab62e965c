"""What `dfastllm serve` is asked to start, checked before anything is."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.settings import SettingsError, read_settings

DEFAULT_DATA_DIR = "~/.local/share/dfastllm"
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080


@dataclass(frozen=True, slots=True)
class ServePlan:
    """Settings of `serve` itself; those of the parts travel on in `child_environ`."""

    host: str
    port: int
    api_key: str | None  # one that the API takes
    redis_url: str | None  # None: bring our own
    data_dir: Path
    queue_port: int  # 0: the embedded queue has no port, only its socket
    num_workers: int
    drain_timeout_s: float
    log_format: str
    child_environ: Mapping[str, str]
    # -P: a folder called "api" or "worker" in the current directory must not be taken for ours.
    api_command: tuple[str, ...] = (sys.executable, "-P", "-m", "api")
    worker_command: tuple[str, ...] = (sys.executable, "-P", "-m", "worker")

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> ServePlan:
        """Read and check the settings; raises SettingsError naming a bad one."""
        keys = environ.get("VDIFF_API_KEY", "").split(",")
        settings = read_settings(environ)
        if settings.burst:
            raise SettingsError("VDIFF_BURST: a server goes on; it is for `dfastllm worker` alone")
        data_dir = Path(environ.get("VDIFF_DATA_DIR") or DEFAULT_DATA_DIR)
        files_dir = environ.get("VDIFF_FILES_DIR") or str(data_dir / "files")
        return cls(
            host=environ.get("VDIFF_HOST") or DEFAULT_HOST,
            port=_whole_number(environ, "VDIFF_PORT", DEFAULT_PORT, 1, 65535),
            api_key=keys[0].strip() or None,
            redis_url=environ.get("VDIFF_REDIS_URL") or None,
            data_dir=data_dir,
            queue_port=_whole_number(environ, "VDIFF_QUEUE_PORT", 0, 0, 65535),
            num_workers=_whole_number(environ, "VDIFF_WORKERS", 1, 1, 256),
            drain_timeout_s=settings.drain_timeout,
            log_format=settings.log_format,
            child_environ={**environ, "VDIFF_FILES_DIR": files_dir},
        )


def _whole_number(
    environ: Mapping[str, str], name: str, default: int, lowest: int, highest: int
) -> int:
    text = environ.get(name) or str(default)
    if not text.isdecimal() or not lowest <= int(text) <= highest:
        raise SettingsError(f"{name}={text!r}: must be a number from {lowest} to {highest}")
    return int(text)
