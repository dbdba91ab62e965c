"""semi_ar, interrupted: by long prompts, by pages that run out, by aborts and by restarts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.dfastllm_engine import DFastLLMEngine
from engine.generation import diffusion_reader
from engine.models.diffusion_lm import ContextKind
from tests.engine.engines import (
    Result,
    TinyModels,
    add,
    batcher_of,
    check_nothing_leaked,
    make_engine,
    run_all,
    tokens,
)
from tests.engine.tiny_diffusion import (
    KINDS,
    num_forwards,
    semi_ar_asks,
    tiny_diffusion,
)


@pytest.fixture(params=KINDS.keys())
def kind(request: pytest.FixtureRequest, models: TinyModels) -> TinyModels:
    return tiny_diffusion(models, KINDS[request.param])


def check_no_state_left(engine: DFastLLMEngine) -> None:
    check_nothing_leaked(engine)
    strategy = batcher_of(engine).strategies["semi_ar"]
    kept = (strategy._blocks, strategy._reader._progress, strategy._canvas_reader._kept)  # type: ignore[attr-defined]
    assert not any(kept)


def test_a_long_prompt_is_read_in_pieces_that_change_nothing(
    kind: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = [replace(ask, prompt=tokens(40, 5)) for ask in semi_ar_asks(kind)]
    at_once = run_all(make_engine(kind), asks)
    monkeypatch.setattr(diffusion_reader, "MAX_READ_ROWS", 16)
    in_pieces = run_all(make_engine(kind), asks)
    assert [r.token_ids for r in in_pieces] == [r.token_ids for r in at_once]
    assert kind.diffusion is not None
    more = num_forwards(in_pieces[0]) - num_forwards(at_once[0])
    assert more == (0 if kind.diffusion.config.context is ContextKind.BIDIRECTIONAL else 2)


def test_too_few_pages_cost_forwards_and_no_token(kind: TinyModels) -> None:
    """A block half revealed goes on where it was, over a context that is read again."""
    asks = [replace(ask, prompt=tokens(12, ask.choice)) for ask in semi_ar_asks(kind)]
    expected = run_all(make_engine(kind), asks)
    engine = make_engine(kind, num_pages=17, max_model_len=64)
    assert [r.token_ids for r in run_all(engine, asks)] == [r.token_ids for r in expected]
    assert kind.diffusion is not None
    is_growing = kind.diffusion.config.context is not ContextKind.BIDIRECTIONAL
    assert (engine.metrics()["num_preemptions"] > 0) == is_growing  # else it has its pages at once
    check_no_state_left(engine)


def test_a_block_is_pre_empted_half_revealed(kind: TinyModels) -> None:
    """Every pre-emption by hand, in each step once: the hardest that can happen."""
    (ask,) = semi_ar_asks(kind)[1:2]
    (expected,) = run_all(make_engine(kind), [ask])
    engine = make_engine(kind)
    add(engine, "0", ask)
    results: dict[str, Result] = {}
    for turn in range(1000):
        if not engine.has_work:
            break
        for output in engine.step():
            results.setdefault(output.sequence_id, Result()).take(output)
        batcher = batcher_of(engine)
        if turn % 2 and batcher.running:  # every other: a canvas needs a step to be read again
            (sequence,) = batcher.running
            batcher._release_pages(sequence)
            sequence.num_preemptions += 1
    assert results["0"].token_ids == expected.token_ids


def test_an_abort_in_the_middle_of_a_block_leaves_nothing_behind(kind: TinyModels) -> None:
    engine = make_engine(kind)
    for number, ask in enumerate(semi_ar_asks(kind)):
        add(engine, str(number), ask)
    for _ in range(3):
        engine.step()
    for number in range(3):
        engine.abort(str(number))
    check_no_state_left(engine)


@pytest.mark.parametrize("num_given", [6, 9])
def test_a_rerun_goes_on_after_what_was_given_out(kind: TinyModels, num_given: int) -> None:
    """At the end of a block, and within one: that block is then written again, as it was."""
    asks = semi_ar_asks(kind)
    expected = run_all(make_engine(kind), asks)
    again = [
        replace(ask, replay=result.token_ids[:num_given])
        for ask, result in zip(asks, expected, strict=True)
    ]
    results = run_all(make_engine(kind), again)
    assert [r.token_ids for r in results] == [r.token_ids[num_given:] for r in expected]
