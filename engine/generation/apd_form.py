"""The two forms of adaptive parallel decoding, and which of them a request gets."""

from __future__ import annotations

from enum import Enum, auto

from engine.request.errors import InvalidRequestError
from engine.request.options import GenerationOptions


class APDForm(Enum):
    MIXTURE = auto()  # diffusion and verifier, mixed under shared noise
    THRESHOLD = auto()  # the diffusion model alone, as far as it is sure


def choose_form(options: GenerationOptions, *, has_verifier: bool) -> APDForm:
    """The mixture, unless there is no verifier or a knob of the other form is set.

    The weight of the mixture decides where both are: only defaults can have brought the others.
    """
    if not has_verifier:
        return APDForm.THRESHOLD
    if options.apd_mix_weight is None and _threshold_knobs(options):
        return APDForm.THRESHOLD
    return APDForm.MIXTURE


def check_form(options: GenerationOptions, *, has_verifier: bool) -> None:
    """Raise `InvalidRequestError` where a request's own knobs belong to different forms."""
    if options.apd_mix_weight is None:
        return
    if not has_verifier:
        message = "apd_mix_weight needs a verifier to mix with; this worker has none"
        raise InvalidRequestError(message, "apd_mix_weight")
    for name in _threshold_knobs(options):
        message = f"{name} is for the form without a verifier, apd_mix_weight for the mixture"
        raise InvalidRequestError(message, name)


def _threshold_knobs(options: GenerationOptions) -> list[str]:
    names = ("confidence_threshold", "apd_threshold", "apd_max_parallel")
    return [name for name in names if getattr(options, name) is not None]
