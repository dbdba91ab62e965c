"""A worker with the shipped models, whose metrics say whether its pages are sound when idle."""

from __future__ import annotations

import sys

import engine.build
from engine.dfastllm_engine import DFastLLMEngine
from engine.engine_config import EngineConfig
from tests.fake_pages import page_metrics
from worker.__main__ import main

build = engine.build.build_engine


def build_watched(config: EngineConfig) -> DFastLLMEngine:
    made = build(config)
    metrics = made.metrics

    def watched() -> dict[str, float]:
        pool = made._batching.batcher.pool
        return {**metrics(), **page_metrics(pool, is_idle=not made.has_work)}

    made.metrics = watched  # type: ignore[method-assign]
    return made


if __name__ == "__main__":
    engine.build.build_engine = build_watched
    sys.exit(main(sys.argv[1:]))
