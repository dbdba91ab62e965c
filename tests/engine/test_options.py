"""Knobs of the ways of generating: out of range is refused by name, silence is filled in."""

from __future__ import annotations

import pytest

from engine.request.errors import InvalidRequestError
from engine.request.options import Acceptance, GenerationOptions


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("draft_length", -1),
        ("denoising_steps", 0),
        ("block_length", 0),
        ("confidence_threshold", 1.01),
        ("confidence_threshold", float("nan")),
        ("unmasking_factor", 0.0),
        ("skip_verify_confidence", -0.1),
    ],
)
def test_a_knob_out_of_its_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        GenerationOptions(**{name: value})  # type: ignore[arg-type]
    assert caught.value.param == name


def test_a_request_keeps_what_it_says_and_takes_the_rest_from_the_defaults() -> None:
    defaults = GenerationOptions(draft_length=4, acceptance=Acceptance.REJECTION)
    merged = GenerationOptions(draft_length=0).with_defaults(defaults)
    assert merged == GenerationOptions(draft_length=0, acceptance=Acceptance.REJECTION)
    assert merged.given() == ["draft_length", "acceptance"]
