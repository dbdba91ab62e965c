"""What a worker says of itself at each beat."""

from __future__ import annotations

from worker.engine_port import EnginePort
from worker.wire.messages import ModelInfo, WorkerInfo


def info_of(engine: EnginePort, name: str, created: int, is_draining: bool) -> WorkerInfo:
    """Return the words of the worker `name`, which serves since `created` (Unix time, seconds)."""
    model = ModelInfo(
        name=engine.model_name,
        max_model_len=engine.max_model_len,
        modes=list(engine.modes),
        created=created,
        fingerprint=engine.fingerprint,
        tool_syntax=engine.tokenizer.tool_syntax,
    )
    return WorkerInfo(
        name=name,
        model=model,
        max_batch_size=engine.max_batch_size,
        num_running=engine.num_running,
        num_waiting=engine.num_waiting,
        metrics=engine.metrics(),
        is_draining=is_draining,
    )
