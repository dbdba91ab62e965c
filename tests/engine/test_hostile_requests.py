"""Odd requests that once ended a step for everybody in it, or held it up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.generation import diffusion_reader
from engine.generation.predicted_output import continuation
from engine.generation.spec_diff import MAX_STEPS, SpecDiff
from engine.generation.strategy import GenerationStrategy
from engine.models.diffusion_lm import ContextKind, DiffusionConfig
from engine.request.errors import InvalidRequestError
from engine.request.options import GenerationOptions
from engine.request.outputs import FinishReason
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import (
    Ask,
    TinyModels,
    check_nothing_leaked,
    make_engine,
    run_all,
    strategy_context,
    tokens,
)
from tests.engine.tiny_diffusion import KINDS, MASK, tiny_diffusion

PARAMS = SamplingParams(seed=1, max_tokens=12, ignore_eos=True)


@pytest.fixture
def ours(models: TinyModels) -> TinyModels:
    return tiny_diffusion(models, KINDS["ours"])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_written_and_nothing_breaks_where_no_token_is_wanted(
    models: TinyModels, kind: str
) -> None:
    params = SamplingParams(max_tokens=0, logprobs=2)
    options = GenerationOptions(apd_threshold=0.5)
    engine = make_engine(tiny_diffusion(models, KINDS[kind]))
    for length in (1, 8, 21):
        (result,) = run_all(engine, [Ask(tokens(length, 1), params, "apd", options=options)])
        assert (result.token_ids, result.logprobs) == ([], [])
        assert result.finish_reason is FinishReason.LENGTH
    check_nothing_leaked(engine)


@pytest.mark.parametrize("mode", ["ar", "deer"])
@pytest.mark.parametrize("token_id", [-1, 512, 10**12])
def test_a_prediction_of_tokens_that_the_model_does_not_have_is_refused(
    models: TinyModels, mode: str, token_id: int
) -> None:
    options = GenerationOptions(prediction=(1, token_id))
    with pytest.raises(InvalidRequestError) as refused:
        make_engine(models).make_sequence("a", [1, 2], PARAMS, mode=mode, options=options)
    assert refused.value.param == "prediction"


@pytest.mark.parametrize("mode", ["deer", "spec_diff"])
def test_a_prediction_is_judged_alone_while_the_drafter_still_reads(
    ours: TinyModels, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was drafted then, so there is no draft's confidence that could let a token stand."""
    monkeypatch.setattr(diffusion_reader, "MAX_READ_ROWS", 8)
    ask = Ask(tokens(60, 2), PARAMS)
    (plain,) = run_all(make_engine(ours), [ask])
    wrong = [plain.token_ids[0], *((token_id + 1) % 500 for token_id in plain.token_ids[1:])]
    options = GenerationOptions(prediction=tuple(wrong), skip_verify_confidence=1.0)
    (result,) = run_all(make_engine(ours), [replace(ask, mode=mode, options=options)])
    assert result.token_ids == plain.token_ids


def test_a_block_that_is_longer_than_what_is_read_at_once_is_read_as_a_whole(
    models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DiffusionConfig(MASK, False, ContextKind.BLOCK_CAUSAL, block_length=16)
    blocks = tiny_diffusion(models, config)
    ask = Ask(tokens(50, 3), PARAMS, "semi_ar")
    (expected,) = run_all(make_engine(blocks), [ask])
    monkeypatch.setattr(diffusion_reader, "MAX_READ_ROWS", 5)
    (result,) = run_all(make_engine(blocks), [ask])
    assert result.token_ids == expected.token_ids


def test_a_default_of_many_denoising_steps_ends_within_the_rounds_of_a_step(
    ours: TinyModels,
) -> None:
    """A request may not ask for so many, but an operator may, who has the canvas modes in mind."""
    context = replace(strategy_context(ours), max_draft_length=100)
    extra: dict[str, GenerationStrategy] = {"patient": SpecDiff(context)}
    options = GenerationOptions(
        denoising_steps=MAX_STEPS, draft_length=100, confidence_threshold=1.0
    )
    params = replace(PARAMS, max_tokens=102)
    engine = make_engine(ours, extra=extra)
    ask = Ask(tokens(5, 4), params, "patient", options=options)
    sequence = engine.make_sequence("a", ask.prompt, params, mode="patient", options=options)
    sequence.options = replace(options, denoising_steps=128)
    engine.add(sequence)
    for _ in range(4):
        engine.step()
    (plain,) = run_all(make_engine(ours), [replace(ask, mode="ar", options=GenerationOptions())])
    assert sequence.num_output_tokens > 1
    assert sequence.output_token_ids == plain.token_ids[: sequence.num_output_tokens]


def test_bytes_that_agree_between_tokens_are_no_place_of_a_prediction() -> None:
    """In little-endian order 7 lies across every border of a run of 7 * 256."""
    assert continuation([7 * 256] * 1000, [7] * 10, 4) == []
    assert continuation([7 * 256] * 1000 + [7, 7, 1, 2], [7] * 10, 4) == [1, 2]
