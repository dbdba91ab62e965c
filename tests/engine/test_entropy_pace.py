"""`spec_diff` paced by entropy: how much it drafts follows certainty, its tokens do not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.entropy_controller import EntropyConfig
from engine.generation.spec_diff import SpecDiff
from engine.generation.strategy import ModelRole
from engine.request.options import GenerationOptions
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import (
    Result,
    TinyModels,
    check_nothing_leaked,
    make_engine,
    run_all,
    strategy_context,
    tokens,
)
from tests.engine.test_token_identity import ASKS

CERTAIN_ENOUGH = EntropyConfig(low=8.0, high=11.0)  # above what 512 tokens can have: log 512 is 6.2
NEVER_CERTAIN = EntropyConfig(low=0.0, high=0.001)
NEARLY_TOO_UNCERTAIN = EntropyConfig(low=0.0, high=6.5)
BETWEEN = EntropyConfig(low=2.0, high=5.5)


def run(
    models: TinyModels, entropy: EntropyConfig, options: GenerationOptions | None = None
) -> tuple[list[Result], dict[str, float]]:
    strategy = SpecDiff(replace(strategy_context(models), entropy=entropy))
    engine = make_engine(models, extra={"spec_diff": strategy})
    knobs = options or GenerationOptions()
    results = run_all(engine, [replace(one, mode="spec_diff", options=knobs) for one in ASKS])
    check_nothing_leaked(engine)
    return results, engine.metrics()


@pytest.fixture(scope="module")
def expected(models: TinyModels) -> list[list[int]]:
    return [r.token_ids for r in run_all(make_engine(models), ASKS)]


@pytest.mark.parametrize("entropy", [CERTAIN_ENOUGH, NEVER_CERTAIN, BETWEEN])
def test_the_pace_changes_no_token(
    models: TinyModels, expected: list[list[int]], entropy: EntropyConfig
) -> None:
    results, _ = run(models, entropy)
    assert [result.token_ids for result in results] == expected


def test_an_uncertain_drafter_gets_more_steps_a_draft_than_a_certain_one(
    models: TinyModels,
) -> None:
    options = GenerationOptions(draft_length=4, confidence_threshold=1.0)
    _, certain = run(models, CERTAIN_ENOUGH, options)
    _, uncertain = run(models, NEARLY_TOO_UNCERTAIN, options)
    assert uncertain["num_draft_rows"] > 1.2 * certain["num_draft_rows"]


def test_a_certain_drafter_drafts_often_and_an_uncertain_one_hardly(models: TinyModels) -> None:
    _, certain = run(models, CERTAIN_ENOUGH)
    _, uncertain = run(models, NEVER_CERTAIN)
    assert certain["spec_diff_num_draft_tokens"] > 5 * uncertain["spec_diff_num_draft_tokens"]
    assert uncertain["spec_diff_num_draft_tokens"] > 0, "what fades is tried again"
    assert uncertain["spec_diff_num_undrafted_steps"] > certain["spec_diff_num_undrafted_steps"]


def test_what_a_request_asks_for_is_not_the_controllers_to_change(models: TinyModels) -> None:
    options = GenerationOptions(draft_length=2, denoising_steps=2, confidence_threshold=1.0)
    _, asked = run(models, NEVER_CERTAIN, options)
    # Two masks in two steps: the leftmost is revealed in the first.
    assert asked["num_draft_rows"] > 0
    assert asked["spec_diff_num_draft_tokens"] > 1.5 * (
        asked["spec_diff_num_verify_steps"] - asked["spec_diff_num_undrafted_steps"]
    )


def test_the_pace_is_asked_where_the_step_planner_goes_on_without_drafts(
    models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may draft for a text though costs speak against it."""
    dear = [(1, 10.0), (16, 160.0)]
    context = replace(strategy_context(models), draft_costs=dear, entropy=CERTAIN_ENOUGH)
    strategy = SpecDiff(context)
    sequence = make_engine(models).make_sequence("own", tokens(5, 1), SamplingParams(max_tokens=50))
    monkeypatch.setattr(strategy.lengths, "keep_resting", lambda sequences: True)
    (rows,) = strategy.propose([sequence], ())
    assert rows.model is ModelRole.DRAFTER
