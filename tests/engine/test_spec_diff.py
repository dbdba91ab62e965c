"""`spec_diff`: drafts of several denoising steps give the tokens of `ar`, and read what is sure."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

import pytest
import torch

from engine.denoising_planner import DenoisingModel, plan_denoising
from engine.generation.spec_diff import SpecDiff
from engine.generation.strategy import ModelRole, Rows, RowsOutput
from engine.request.errors import InvalidRequestError
from engine.request.options import GenerationOptions, Remasking
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import (
    Ask,
    Result,
    TinyModels,
    add,
    batcher_of,
    check_nothing_leaked,
    count_drafts,
    make_engine,
    run_all,
    strategy_context,
    tokens,
)
from tests.engine.test_token_identity import ASKS

MASK = 511
WAYS = (
    ("spec_diff", GenerationOptions(draft_length=4, denoising_steps=2)),
    ("ar", GenerationOptions()),
    ("spec_diff", GenerationOptions(draft_length=5, denoising_steps=5, confidence_threshold=0.05)),
    ("deer", GenerationOptions(draft_length=3)),
    ("spec_diff", GenerationOptions(denoising_steps=3, unmasking_factor=1.5)),
    ("spec_diff", GenerationOptions(remasking=Remasking.ENTROPY)),
)


@pytest.fixture(scope="module")
def expected(models: TinyModels) -> list[Result]:
    return run_all(make_engine(models), [replace(one, mode="ar") for one in ASKS])


@pytest.mark.parametrize("num_pages", [512, 32], ids=["room", "pre-emption"])
def test_a_mixed_batch_gives_each_the_tokens_of_ar(
    models: TinyModels, expected: list[Result], num_pages: int
) -> None:
    asks = []
    for index, one in enumerate(ASKS):
        mode, options = WAYS[(index + index // 8) % len(WAYS)]
        asks.append(replace(one, mode=mode, options=options))
    engine = make_engine(models, num_pages=num_pages)
    results = run_all(engine, asks)
    for result, alone in zip(results, expected, strict=True):
        assert result.token_ids == alone.token_ids
        assert result.summary is not None and result.summary.is_lossless
    ours = [r for r, one in zip(results, asks, strict=True) if one.mode == "spec_diff"]
    accepted, refused = count_drafts(ours)
    assert accepted >= 5 and refused >= 5, "the test proves nothing"
    assert (batcher_of(engine).stats.num_preemptions > 0) == (num_pages == 32)
    check_nothing_leaked(engine)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_more_steps_of_the_shipped_model_are_accepted_more_and_change_nothing(
    shipped: TinyModels, temperature: float
) -> None:
    text = "I would like to book a table for two people at an Italian place in San Jose."
    prompts = [shipped.tokenizer.encode(text[: 20 * n]) for n in (1, 2, 3)]
    plain = [
        Ask(p, SamplingParams(seed=s, temperature=temperature, max_tokens=24, ignore_eos=True))
        for s, p in enumerate(prompts)
    ]
    alone = run_all(make_engine(shipped), plain)
    num_accepted = []
    for steps in (1, 3):
        options = GenerationOptions(draft_length=5, denoising_steps=steps)
        engine = make_engine(shipped)
        results = run_all(
            engine, [replace(one, mode="spec_diff", options=options) for one in plain]
        )
        assert [r.token_ids for r in results] == [r.token_ids for r in alone]
        accepted, refused = count_drafts(results)
        assert accepted > 5 and refused > 5, "the test proves nothing"
        num_verified = sum(sum(r.summary.acceptance_histogram) for r in results if r.summary)
        num_accepted.append(accepted / num_verified)
    assert num_accepted[1] > num_accepted[0]


def answer(rows: Rows, sure: Seq[int]) -> RowsOutput:
    """Token 100 + j for mask j, likely for the `sure` ones."""
    token_ids = [100 + j for j in range(rows.num_logits)]
    logits = torch.zeros(rows.num_logits, 512)
    for j in sure:
        logits[j, 100 + j] = 20.0
    return RowsOutput(rows, token_ids, logits)


def test_a_step_reads_what_is_sure_and_the_leftmost_and_keeps_the_rest_masked(
    models: TinyModels,
) -> None:
    strategy, engine = SpecDiff(strategy_context(models)), make_engine(models)
    options = GenerationOptions(draft_length=5, denoising_steps=3)
    sequence = engine.make_sequence(
        "a", tokens(5, 1), SamplingParams(max_tokens=50), mode="spec_diff", options=options
    )
    last = sequence.token_ids[-1]
    (first,) = strategy.propose([sequence], ())
    assert list(first.token_ids) == [last, *[MASK] * 5]
    (second,) = strategy.propose([sequence], [answer(first, sure=[3])])
    assert list(second.token_ids) == [last, 100, MASK, MASK, 103, MASK]
    again = answer(second, sure=[])
    again.token_ids[0] = again.token_ids[3] = 7  # what is revealed is not drawn again
    (third,) = strategy.propose([sequence], [again])
    assert list(third.token_ids) == [last, 100, 101, MASK, 103, MASK]
    assert {rows.denoising_step for rows in (first, second, third)} == {0}, "the shared noise"
    (final,) = strategy.propose([sequence], [answer(third, sure=[])])
    assert final.model is ModelRole.VERIFIER
    assert list(final.token_ids) == [last, 100, 101, 102, 103, 104]


def test_a_draft_without_masks_goes_to_the_verifier_though_steps_are_left(
    models: TinyModels,
) -> None:
    strategy, engine = SpecDiff(strategy_context(models)), make_engine(models)
    options = GenerationOptions(draft_length=3, denoising_steps=9)
    pair = [
        engine.make_sequence(
            name, tokens(5, 1), SamplingParams(max_tokens=50), mode="spec_diff", options=options
        )
        for name in "ab"
    ]
    rows = strategy.propose(pair, ())
    outputs = [answer(rows[0], sure=[0, 1, 2]), answer(rows[1], sure=[])]
    after = {row.sequence.sequence_id: row for row in strategy.propose(pair, outputs)}
    assert after["a"].model is ModelRole.VERIFIER and after["b"].model is ModelRole.DRAFTER


def test_without_a_number_of_steps_costs_decide(models: TinyModels) -> None:
    """Where another draft costs nothing it is made, where it is dear it is not."""
    engine = make_engine(models)
    sequence = engine.make_sequence(
        "a",
        tokens(5, 1),
        SamplingParams(max_tokens=50),
        mode="spec_diff",
        options=GenerationOptions(draft_length=5),
    )
    for draft_s, model in ((1e-7, ModelRole.DRAFTER), (1e-2, ModelRole.VERIFIER)):
        costs = [(1, draft_s), (16, 2 * draft_s)]
        strategy = SpecDiff(replace(strategy_context(models), draft_costs=costs))
        (first,) = strategy.propose([sequence], ())
        (second,) = strategy.propose([sequence], [answer(first, sure=[])])
        assert second.model is model


def test_skipping_verification_is_lossy_and_said(models: TinyModels) -> None:
    base = replace(ASKS[16], mode="deer", draft_length=4)
    exact = run_all(make_engine(models), [base])[0]
    for mode in ("deer", "spec_diff"):
        lossy = GenerationOptions(draft_length=4, skip_verify_confidence=0.0)
        engine = make_engine(models)
        (result,) = run_all(engine, [replace(base, mode=mode, options=lossy, draft_length=None)])
        assert result.summary is not None and not result.summary.is_lossless
        assert count_drafts([result])[1] == 0, "every draft token stands"
        assert result.token_ids != exact.token_ids
        never = replace(lossy, skip_verify_confidence=1.0)
        (result,) = run_all(make_engine(models), [replace(base, mode=mode, options=never)])
        assert result.token_ids == exact.token_ids


def test_an_aborted_draft_leaves_nothing(models: TinyModels) -> None:
    engine = make_engine(models)
    add(engine, "a", replace(ASKS[8], mode="spec_diff", draft_length=4))
    add(engine, "b", replace(ASKS[9], mode="spec_diff", draft_length=4))
    for _ in range(3):
        engine.step()
    engine.abort("a")
    while engine.has_work:
        assert all(output.sequence_id == "b" for output in engine.step())
    strategy = batcher_of(engine).strategies["spec_diff"]
    assert isinstance(strategy, SpecDiff) and not strategy._drafts
    check_nothing_leaked(engine)


def test_knobs_that_make_no_sense_are_refused_by_name(models: TinyModels) -> None:
    engine = make_engine(models)
    for options, param in (
        (GenerationOptions(remasking=Remasking.RANDOM), "remasking"),
        (GenerationOptions(denoising_steps=100), "denoising_steps"),
        (
            GenerationOptions(confidence_threshold=0.5, unmasking_factor=1.0),
            "unmasking_factor",
        ),
        (GenerationOptions(block_length=4), "block_length"),
    ):
        with pytest.raises(InvalidRequestError) as refused:
            engine.make_sequence(
                "a", tokens(4, 1), SamplingParams(), mode="spec_diff", options=options
            )
        assert refused.value.param == param


def test_drafts_are_denoised_again_where_that_raises_the_rate() -> None:
    def cost(num_drafts: float) -> float:
        return 1.0 + 0.1 * num_drafts

    # 4 tokens in 4 s now: the step's first second must bring a token, each draft 0.1 more.
    assert plan_denoising([0.5, 0.5], 4.0, 4.0, cost) == set()
    assert plan_denoising([0.05, 0.9, 0.7], 4.0, 4.0, cost) == {1, 2}
    assert plan_denoising([], 4.0, 4.0, cost) == set()


def test_chances_are_learned_of_what_was_sure_left_masked_or_drawn_again() -> None:
    model = DenoisingModel(3)
    for _ in range(200):
        # Of two steps: position 0 sure at once, 1 drawn again, 2 masked to the end.
        model.update([[False, True, True], [False, False, True]], 3, 2)
    masked = [True]
    assert model.survivals([False], 1)[0] > 0.95
    assert model.survivals(masked, 2)[0] < 0.1, "verified as it was, and refused"
    again = model.survivals(masked, 1, once_more=True)[0]
    assert 0.4 < again < 0.6, "one of two masks of the first step stood after another"
    assert model.survivals(masked, 1)[0] == 0.5, "nothing was verified after one step"
