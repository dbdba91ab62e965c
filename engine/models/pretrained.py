"""Models of transformers built without weights, and then given them: never twice in memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from engine.models.attention import PAGED_ATTENTION
from engine.models.checkpoint import (
    UnsupportedModelError,
    check_tensors,
    read_config,
    weight_bytes,
)
from engine.models.memory import claim_memory

logger = getLogger("dfastllm.engine")


def pretrained(
    folder: Path,
    what: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    config: Any = None,
    tensors: dict[str, Tensor] | None = None,
    model_class: Any = None,
) -> Any:
    """A model on `device` with our attention; `what` names it in errors.

    Without `config` the folder is read as transformers reads it: as a causal LM, or else as a model
    of images and text, which writes text alone as well. With one, `model_class` is built by it and
    takes `tensors` under its own names. transformers builds on the meta device and puts
    each tensor in its place; on an accelerator the weights pass through host memory. A tensor that
    is missing is an error, and so, where we say what there should be, is one too many.
    """
    claim_memory(weight_bytes(folder, dtype), device, what)
    started = time.perf_counter()
    source = {} if config is None else {"config": config, "state_dict": tensors}
    model, report = _load(model_class or _class_for(folder), folder, what, dtype, source)
    unexpected = set(report["unexpected_keys"])
    # transformers would go on with random numbers in the place of what is missing.
    check_tensors(set(report["missing_keys"]), unexpected if config is not None else set(), what)
    if unexpected:
        logger.warning("%s: weights that are not used: %s", what, ", ".join(sorted(unexpected)[:5]))
    logger.info("%s loaded in %.1f s", what, time.perf_counter() - started)
    return model.to(device).eval()


def _load(
    model_class: Any, folder: Path, what: str, dtype: torch.dtype, source: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The model on the host, and transformers' report on what it found."""
    with _progress_for_people_only():
        try:
            loaded: tuple[Any, dict[str, Any]] = model_class.from_pretrained(
                None if source else folder,
                dtype=dtype,
                attn_implementation=PAGED_ATTENTION,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **source,
            )
        # A KeyError: the model looks its attention up by name in a table of its own. A
        # RuntimeError: shapes that differ. An ImportError: a quantisation that is not installed.
        except (ValueError, OSError, KeyError, RuntimeError, ImportError) as error:
            raise UnsupportedModelError(f"cannot load {what}: {error}") from error
    return loaded


def _class_for(folder: Path) -> Any:
    kind = read_config(folder).get("model_type")
    is_text = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    sees_images = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return AutoModelForImageTextToText if sees_images and not is_text else AutoModelForCausalLM


@contextmanager
def _progress_for_people_only() -> Iterator[None]:
    """Let transformers draw its bar (tqdm) on a terminal; elsewhere our log lines must do."""
    was_shown = transformers_logging.is_progress_bar_enabled()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if was_shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
