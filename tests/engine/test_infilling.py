"""diffusion with suffixes: the holes between given texts are filled in, and told apart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.request.options import GenerationOptions, Remasking
from engine.request.outputs import FinishReason, SequenceSummary
from engine.request.sampling_params import SamplingParams
from engine.training import denoise
from tests.engine.engines import (
    Ask,
    Result,
    TinyModels,
    check_nothing_leaked,
    make_engine,
    run_all,
    tokens,
)
from tests.engine.tiny_diffusion import (
    KINDS,
    MASK,
    THRESHOLD,
    by_reference,
    plain_denoise,
    tiny_diffusion,
)

TABLE = "| name | age |\n| --- | --- |\n| Ann", "\n| Bob | 12 |\n"
GREEDY = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)
ANY_ORDER = GenerationOptions(confidence_threshold=THRESHOLD)


@pytest.fixture(params=["llada", "dream", "ours"])
def kind(request: pytest.FixtureRequest, models: TinyModels) -> TinyModels:
    return tiny_diffusion(models, KINDS[request.param])


def summary_of(result: Result) -> SequenceSummary:
    assert result.summary is not None
    return result.summary


def test_the_shipped_model_fills_in_what_its_reference_fills_in(shipped: TinyModels) -> None:
    prompt, suffix = (shipped.tokenizer.encode(text) for text in TABLE)
    options = GenerationOptions(suffixes=(tuple(suffix),))
    ask = Ask(prompt, replace(GREEDY, max_tokens=6), "diffusion", options=options)
    (result,) = run_all(make_engine(shipped, max_model_len=128), [ask])
    expected = by_reference(shipped, denoise.infill, prompt, 6, suffix, 0.9)
    assert result.token_ids == expected.token_ids
    summary = summary_of(result)
    assert summary.num_forwards == expected.num_forwards
    assert summary.hole_lengths == (6,)
    bare = run_all(
        make_engine(shipped, max_model_len=128), [replace(ask, options=GenerationOptions())]
    )
    assert result.token_ids != bare[0].token_ids, "the suffix must matter"


def test_several_holes_are_filled_as_a_plain_loop_fills_them(kind: TinyModels) -> None:
    """Three holes share ten tokens; the suffixes, one of them empty, stay what they are."""
    suffixes = ((5, 6, 7), (), (9,))
    params, options = replace(GREEDY, max_tokens=10), replace(ANY_ORDER, suffixes=suffixes)
    for prompt in (tokens(3, 3), tokens(21, 21)):
        ask = Ask(prompt, params, "diffusion", options=options)
        (result,) = run_all(make_engine(kind), [ask])
        text = [*prompt, *[MASK] * 4, 5, 6, 7, *[MASK] * 6, 9]
        num_forwards = plain_denoise(kind, text, len(prompt), len(text), THRESHOLD)
        filled = text[len(prompt) :]
        assert result.token_ids == filled[:4] + filled[7:13]
        summary = summary_of(result)
        assert summary.hole_lengths == (4, 3, 3)
        assert summary.num_forwards == num_forwards


def test_an_end_of_text_ends_its_hole_alone(kind: TinyModels) -> None:
    """And is not part of what the hole holds; the rest of the hole counts as said."""
    options = replace(ANY_ORDER, suffixes=((5, 6, 7), (8,)))
    ask = Ask(tokens(9, 1), replace(GREEDY, max_tokens=12), "diffusion", options=options)
    (whole,) = run_all(make_engine(kind), [ask])
    first, second = whole.token_ids[:6], whole.token_ids[6:]
    end = next(token for token in first if token not in second)
    params = replace(ask.params, stop_token_ids=(end,))
    (result,) = run_all(make_engine(kind), [replace(ask, params=params)])
    lengths = summary_of(result).hole_lengths
    assert lengths[0] == first.index(end)
    assert lengths[0] + lengths[1] == len(result.token_ids)
    assert result.token_ids[: lengths[0]] == first[: lengths[0]]
    assert result.finish_reason is FinishReason.LENGTH  # the second hole was full


def test_a_text_whose_holes_all_ended_by_themselves_has_stopped(kind: TinyModels) -> None:
    params = replace(GREEDY, max_tokens=12, stop_token_ids=(33,), logit_bias={33: 100.0})
    for suffixes in (((5,),), ((5,), ())):
        options = GenerationOptions(suffixes=suffixes, remasking=Remasking.RANDOM)
        engine = make_engine(kind)
        (result,) = run_all(engine, [Ask([1, 2], params, "diffusion", options=options)])
        assert result.token_ids == []
        assert result.finish_reason is FinishReason.STOP
        assert summary_of(result).hole_lengths == (0,) * len(suffixes)
        assert summary_of(result).num_forwards < 12, "nothing is to be said after the end"
        check_nothing_leaked(engine)


def test_a_stop_string_ends_a_single_hole(kind: TinyModels) -> None:
    """And its length is that of the output."""
    options = replace(ANY_ORDER, suffixes=((5, 6),))
    letter = kind.tokenizer.encode("x")[0]
    params = replace(GREEDY, stop=("x",), logit_bias={letter: 100.0}, min_tokens=3)
    (result,) = run_all(make_engine(kind), [Ask([1, 2], params, "diffusion", options=options)])
    assert result.finish_reason is FinishReason.STOP
    assert summary_of(result).hole_lengths == (len(result.token_ids),)
