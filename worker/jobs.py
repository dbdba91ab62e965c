"""The import path that RQ stores with every job."""

from __future__ import annotations

from typing import NoReturn


def generate() -> NoReturn:
    """Raise: only a dfastllm worker can run these jobs, and it does not do so by calling this."""
    raise RuntimeError(
        "this job was taken by a stock RQ worker; generation jobs are run by `dfastllm worker`, "
        "which reads them from the job's `dfl` field"
    )
