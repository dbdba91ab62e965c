"""semi_ar with a model that denoises random tokens, where something comes between."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.dfastllm_engine import DFastLLMEngine
from engine.generation import renoising
from tests.engine.engines import Result, TinyModels, add, batcher_of, make_engine, run_all, tokens
from tests.engine.tiny_canvas import (
    CANVAS,
    asks_of,
    beside,
    check_no_state_left,
    num_forwards,
    save_resting,
)


@pytest.fixture(scope="module")
def gemma(models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    return beside(models, save_resting(tmp_path_factory.mktemp("canvas")))


def test_canvases_at_different_passes_share_one_forward_and_are_told_their_own(
    gemma: TinyModels,
) -> None:
    asks = asks_of()
    expected = run_all(make_engine(gemma), asks)
    engine = make_engine(gemma)
    results: dict[str, Result] = {}
    for number, ask in enumerate(asks):
        add(engine, str(number), ask)
        for _ in range(3):
            _step(engine, results)
    while engine.has_work:
        _step(engine, results)
    assert [results[str(i)].token_ids for i in range(3)] == [r.token_ids for r in expected]
    total = sum(map(num_forwards, expected))
    assert engine.metrics()["num_denoise_forwards"] < 0.6 * total
    check_no_state_left(engine)


def test_too_few_pages_cost_forwards_and_no_token(gemma: TinyModels) -> None:
    asks = [replace(ask, prompt=tokens(12, ask.choice)) for ask in asks_of()]
    expected = run_all(make_engine(gemma), asks)
    engine = make_engine(gemma, num_pages=17, max_model_len=64)
    assert [r.token_ids for r in run_all(engine, asks)] == [r.token_ids for r in expected]
    assert engine.metrics()["num_preemptions"] > 0
    check_no_state_left(engine)


def test_a_canvas_outlives_the_loss_of_its_pages(gemma: TinyModels) -> None:
    ask = asks_of()[1]
    (expected,) = run_all(make_engine(gemma), [ask])
    engine = make_engine(gemma)
    add(engine, "0", ask)
    results: dict[str, Result] = {}
    while engine.has_work:
        _step(engine, results)
        for sequence in batcher_of(engine).running:
            batcher_of(engine)._release_pages(sequence)
            sequence.num_preemptions += 1
    assert results["0"].token_ids == expected.token_ids
    assert num_forwards(results["0"]) == num_forwards(expected)


def test_an_abort_in_the_middle_of_a_canvas_leaves_nothing_behind(gemma: TinyModels) -> None:
    engine = make_engine(gemma)
    for number, ask in enumerate(asks_of()):
        add(engine, str(number), ask)
    for _ in range(3):
        engine.step()
    for number in range(3):
        engine.abort(str(number))
    check_no_state_left(engine)


@pytest.mark.parametrize("num_given", [CANVAS, CANVAS + 3])
def test_a_rerun_goes_on_after_what_was_given_out(gemma: TinyModels, num_given: int) -> None:
    asks = asks_of()
    expected = run_all(make_engine(gemma), asks)
    again = [
        replace(ask, replay=result.token_ids[:num_given])
        for ask, result in zip(asks, expected, strict=True)
    ]
    results = run_all(make_engine(gemma), again)
    assert [r.token_ids for r in results] == [r.token_ids[num_given:] for r in expected]


def test_a_long_prompt_is_read_in_pieces_that_change_nothing(
    gemma: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ask,) = [replace(ask, prompt=tokens(40, 5)) for ask in asks_of()[:1]]
    (at_once,) = run_all(make_engine(gemma), [ask])
    monkeypatch.setattr(renoising, "MAX_READ_ROWS", 16)
    (in_pieces,) = run_all(make_engine(gemma), [ask])
    assert in_pieces.token_ids == at_once.token_ids
    assert num_forwards(in_pieces) == num_forwards(at_once) + 2


def _step(engine: DFastLLMEngine, results: dict[str, Result]) -> None:
    for output in engine.step():
        results.setdefault(output.sequence_id, Result()).take(output)
