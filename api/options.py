"""Which way of generating a request asks for, and its knobs."""

from __future__ import annotations

import math

from api.content import part_text
from api.errors import InvalidRequestError
from api.schemas import CompletionRequest, GenerationRequest, Prediction
from api.validation import MAX_TOKEN_ID, check
from worker.wire.messages import ModelInfo, Options

INFILLING_MODE = "diffusion"
MAX_HOLES = 64
MAX_PREDICTION_LENGTH = 131_072

_COUNTS = ("denoising_steps", "block_length", "apd_lookahead", "apd_window", "apd_max_parallel")
_SHARES = ("confidence_threshold", "skip_verify_confidence", "apd_mix_weight", "apd_threshold")
_OTHERS = ("unmasking_factor", "remasking", "canvas_cache", "acceptance")


def mode_of(request: GenerationRequest, model: ModelInfo) -> str | None:
    """Return the mode to run, None for the worker's default; raises InvalidRequestError.

    A suffix can only be had of one mode, and so names it.
    """
    if request.mode is not None and request.mode not in model.modes:
        offered = ", ".join(model.modes) or "none"
        raise InvalidRequestError(
            f"Model '{model.name}' has no mode '{request.mode[:40]}'; its modes: {offered}.",
            param="mode",
        )
    if not _suffixes(request):
        return request.mode
    if request.mode not in (None, INFILLING_MODE):
        raise InvalidRequestError(
            f"'suffix' needs mode '{INFILLING_MODE}', not '{request.mode}'.", param="suffix"
        )
    if INFILLING_MODE not in model.modes:
        raise InvalidRequestError(
            f"'suffix' needs mode '{INFILLING_MODE}', which model '{model.name}' does not have.",
            param="suffix",
            code="unsupported_parameter",
        )
    return INFILLING_MODE


def options_of(request: GenerationRequest) -> Options | None:
    """Return the wire's form of the knobs, checked; None where none is given."""
    for name in _COUNTS:
        check(name, getattr(request, name), 1, MAX_TOKEN_ID)
    for name in _SHARES:
        check(name, getattr(request, name), 0.0, 1.0)
    check("unmasking_factor", request.unmasking_factor, 0.0, math.inf, is_open=True)
    options = Options(
        **{name: getattr(request, name) for name in (*_COUNTS, *_SHARES, *_OTHERS)},
        prediction=_predicted_text(request.prediction),
        suffixes=_suffixes(request),
        shows_steps=_shows_steps(request),
    )
    return None if options == Options() else options


def _shows_steps(request: GenerationRequest) -> bool:
    for name in ("diffusing", "return_draft_events"):
        if getattr(request, name) and not request.stream:
            raise InvalidRequestError(f"'{name}' needs 'stream': true.", param=name)
    if request.diffusing and getattr(request, "tools", None):
        raise InvalidRequestError(
            "'diffusing' shows text alone, and cannot show calls of tools.", param="diffusing"
        )
    return bool(request.diffusing or request.return_draft_events)


def _predicted_text(prediction: Prediction | None) -> str:
    if prediction is None:
        return ""
    text = prediction.content
    if not isinstance(text, str):
        text = "".join(
            part_text(part, f"prediction.content[{index}]") for index, part in enumerate(text)
        )
    if len(text) > MAX_PREDICTION_LENGTH:
        raise InvalidRequestError(
            f"'prediction.content' takes at most {MAX_PREDICTION_LENGTH} characters.",
            param="prediction.content",
        )
    return text


def _suffixes(request: GenerationRequest) -> list[str]:
    """What follows each hole; an empty text or list asks for nothing."""
    if not isinstance(request, CompletionRequest) or not request.suffix:
        return []
    suffixes = [request.suffix] if isinstance(request.suffix, str) else request.suffix
    if len(suffixes) > MAX_HOLES:
        raise InvalidRequestError(f"'suffix' takes at most {MAX_HOLES} texts.", param="suffix")
    return suffixes
