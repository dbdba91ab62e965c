"""What the tables measure inside this process: the engine that the worker would build."""

from __future__ import annotations

import os
from dataclasses import replace

from engine.engine_config import EngineConfig
from worker.engine_config import engine_config
from worker.settings import read_settings


def configured() -> EngineConfig:
    """By the `VDIFF_*` settings, but without the prefix cache.

    Or the second case would find what the first one has read.
    """
    settings = read_settings({**os.environ, "VDIFF_REDIS_URL": "unix:///not-used"})
    return replace(engine_config(settings), prefix_cache=False)
