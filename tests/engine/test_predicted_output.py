"""A client's prediction: found again after a difference, counted, and never in the output's way."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from engine.generation import predicted_output
from engine.generation.predicted_output import continuation
from engine.request.options import GenerationOptions
from engine.request.outputs import SequenceSummary
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import TinyModels, make_engine, tokens


def by_hand(prediction: list[int], output: list[int], limit: int) -> list[int]:
    if prediction[: len(output)] == output:
        return prediction[len(output) :][:limit]
    for size in (8, 4, 2):
        ends = [
            end
            for end in range(size, len(prediction))
            if len(output) >= size and prediction[end - size : end] == output[-size:]
        ]
        if ends:
            end = min(ends, key=lambda place: abs(place - len(output)))
            return prediction[end : end + limit]
    return []


@pytest.mark.parametrize("vocab_size", [2, 3, 300, 70_000])
def test_a_prediction_goes_on_at_the_nearest_place_that_agrees(vocab_size: int) -> None:
    draw = random.Random(vocab_size)
    for _ in range(500):
        prediction = draw.choices(range(vocab_size), k=draw.randrange(30))
        output = draw.choices(range(vocab_size), k=draw.randrange(30))
        start = draw.randrange(30)
        output += prediction[start : start + draw.randrange(10)]
        assert continuation(prediction, output, 4) == by_hand(prediction, output, 4)


def test_what_follows_a_changed_word_is_still_predicted() -> None:
    assert continuation([1, 2, 3, 4, 5, 6, 7], [1, 2, 9, 4, 5], 9) == [6, 7]
    assert continuation([1, 2, 3], [7, 8], 9) == []
    assert continuation([1, 2, 3], [], 2) == [1, 2]
    assert continuation([], [1], 2) == []


@pytest.mark.parametrize("mode", ["ar", "deer"])
def test_a_prediction_is_counted_apart_from_other_drafts(models: TinyModels, mode: str) -> None:
    params = SamplingParams(seed=3, max_tokens=12, ignore_eos=True)
    output, plain = generate(models, mode, params, ())
    assert (plain.num_predicted_tokens, plain.num_predicted_accepted) == (0, 0)
    predicted_output, summary = generate(models, mode, params, output)
    assert predicted_output == output
    assert summary.num_predicted_accepted == summary.num_predicted_tokens > 0
    wrong = output[:3] + tuple((token_id + 1) % 500 for token_id in output[3:])
    other_output, summary = generate(models, mode, params, wrong)
    assert other_output == output
    assert summary.num_predicted_accepted < summary.num_predicted_tokens


def generate(
    models: TinyModels, mode: str, params: SamplingParams, prediction: tuple[int, ...]
) -> tuple[tuple[int, ...], SequenceSummary]:
    engine = make_engine(models)
    options = GenerationOptions(prediction=prediction)
    engine.add(engine.make_sequence("a", tokens(9, 1), params, mode=mode, options=options))
    output: list[int] = []
    while engine.has_work:
        for step in engine.step():
            output += step.token_ids
            summary = step.summary
    assert summary is not None
    return tuple(output), summary


@pytest.mark.parametrize("mode", ["ar", "deer", "spec_diff"])
def test_a_prediction_is_searched_once_a_step(
    models: TinyModels, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    searched: list[int] = []

    def counted(prediction: Sequence[int], output: Sequence[int], limit: int) -> list[int]:
        searched.append(len(output))
        return continuation(prediction, output, limit)

    monkeypatch.setattr(predicted_output, "continuation", counted)
    params = SamplingParams(seed=3, max_tokens=12, ignore_eos=True)
    generate(models, mode, params, (1, 2, 3, 1, 2, 4))
    assert len(searched) == len(set(searched)) > 1
