"""Drafts cut by how certain they are: no token changes, and looking costs no more than it saves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from engine.build import build_engine
from engine.dfastllm_engine import DFastLLMEngine
from engine.draft_planner import Candidate, CostCurve
from engine.engine_config import EngineConfig
from engine.entropy_controller import EntropyConfig
from engine.generation import draft_cutter
from engine.generation.deer import Deer
from engine.generation.draft_cutter import DraftCutter
from engine.generation.strategy import RowsOutput
from engine.models.token_sampler import Pick, TokenSampler
from engine.request.options import Acceptance, GenerationOptions
from engine.request.sampling_params import SamplingParams
from engine.step_costs import DraftCosts
from engine.step_planner import StepPlanner
from tests.engine.engines import (
    CPU,
    Ask,
    Result,
    TinyModels,
    batcher_of,
    check_nothing_leaked,
    count_drafts,
    make_engine,
    run_all,
    strategy_context,
    tokens,
)
from tests.engine.test_shipped_identity import ask, assert_same

STEEP = [(1, 4e-3), (128, 30e-3)]
"""Seconds of a machine on which rows cost: drafts pay, and so does cutting them."""
CHEAP = [(1, 1e-3), (16, 2e-3)]


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look seems to cost nothing, however busy the machine is: so none is left out."""
    monkeypatch.setattr(draft_cutter, "_FRESH", 0.0)


@pytest.fixture(scope="module")
def shipped() -> Iterator[DFastLLMEngine]:
    built = build_engine(EngineConfig(entropy=EntropyConfig(), self_test=False))
    yield built
    check_nothing_leaked(built)


def pretend_costs(deer: Deer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planner that knows nothing yet, on another machine."""
    costs = DraftCosts(CostCurve(CHEAP))
    planner = StepPlanner(deer.source.max_length, CostCurve(STEEP), costs)
    monkeypatch.setattr(deer.lengths, "planner", planner)
    monkeypatch.setattr(deer.source, "cost", costs)


@pytest.mark.usefixtures("looking")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_cut_drafts_change_no_token(
    shipped: DFastLLMEngine, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    deer = batcher_of(shipped).strategies["deer"]
    assert isinstance(deer, Deer)
    pretend_costs(deer, monkeypatch)
    monkeypatch.setattr(deer, "observe", lambda timing: None)  # or the true costs would come back
    assert deer._cutter is not None
    monkeypatch.setattr(deer._cutter, "_look_s", 0.0)
    deer.reset_stats()
    asks = [ask(shipped, temperature, seed) for seed in range(6)]
    expected = run_all(shipped, asks)
    results = run_all(shipped, [replace(one, mode="deer") for one in asks])
    for one, result, reference in zip(asks, results, expected, strict=True):
        assert_same(shipped, one, result, reference)
    accepted, refused = count_drafts(results)
    assert accepted > 20, "the test proves nothing: hardly a draft was accepted"
    assert refused > 10, "the test proves nothing: hardly a draft was refused"
    stats = deer.get_stats()
    assert stats["entropy_num_cut_tokens"] > 20, "the test proves nothing: hardly a draft was cut"
    assert stats["entropy_num_positions"] > 20, "nothing was learnt"
    deer.reset_stats()
    assert deer.get_stats()["entropy_num_positions"] == 0


@pytest.mark.usefixtures("looking")
def test_drafts_are_judged_by_the_logits_that_they_were_drawn_from(
    shipped: DFastLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped drafter adds to a mask's logits what the token before it says."""
    seen: list[RowsOutput] = []
    judge = DraftCutter._judge

    def spy(cutter: DraftCutter, outputs: list[RowsOutput]) -> None:
        seen.extend(outputs)
        judge(cutter, outputs)

    monkeypatch.setattr(DraftCutter, "_judge", spy)
    deer = batcher_of(shipped).strategies["deer"]
    assert isinstance(deer, Deer)
    pretend_costs(deer, monkeypatch)
    monkeypatch.setattr(deer._cutter, "_look_s", 0.0)
    run_all(shipped, [replace(ask(shipped, 0.0, seed), mode="deer") for seed in range(3)])
    assert sum(len(output.token_ids) for output in seen) > 20
    for output in seen:
        assert output.logits.argmax(-1).tolist() == output.token_ids


def cutting_deer(models: TinyModels) -> Deer:
    context = replace(
        strategy_context(models), entropy=EntropyConfig(), verify_costs=STEEP, draft_costs=CHEAP
    )
    deer = Deer(context)
    deer.lengths.planner._first._num_left = 0  # or they would be of full length anyway
    return deer


def test_a_draft_of_a_length_that_the_client_chose_is_not_cut(models: TinyModels) -> None:
    deer = cutting_deer(models)
    engine = make_engine(models, extra={"cutting": deer})
    params = SamplingParams(seed=1, temperature=0.0, max_tokens=30, ignore_eos=True)
    (result,) = run_all(engine, [Ask(tokens(9, 1), params, mode="cutting", draft_length=4)])
    assert num_drafted(result) > 20
    assert deer.get_stats()["entropy_num_cut_tokens"] == 0


def num_drafted(result: Result) -> int:
    assert result.summary is not None
    return result.summary.num_draft_tokens


def test_drafts_are_looked_at_only_where_that_can_save_more_than_it_costs(
    models: TinyModels,
) -> None:
    context = strategy_context(models)
    cutter = DraftCutter(EntropyConfig(), context.sampler, Deer(context).lengths.acceptance)
    cutter._look_s = 1e-3
    wasteful, good = Candidate([0.1] * 4, None), Candidate([0.9] * 4, None)

    def num_looks(candidate: Candidate, seconds_a_row: float) -> int:
        num = 0
        for _ in range(160):
            cutter.decide([candidate], [4], lambda rows: rows * seconds_a_row)
            num += cutter.is_looking
        return num

    assert num_looks(wasteful, 1e-3) == 160
    assert num_looks(wasteful, 1e-5) == 10, "now and then, or the estimates would go stale"
    assert num_looks(good, 1e-3) == 10


def test_leads_tell_how_much_another_model_may_differ_and_still_draw_the_same(
    models: TinyModels,
) -> None:
    """Moving the drawn token down by its lead changes the draw, by a little less does not."""
    sampler = TokenSampler(models.tokenizer, CPU)
    engine = make_engine(models)
    logits = torch.randn(6, models.tokenizer.vocab_size, generator=torch.Generator().manual_seed(1))
    for temperature in (0.0, 0.5, 1.0):
        params = SamplingParams(seed=3, temperature=temperature)
        sequence = engine.make_sequence("a", tokens(5, 0), params)
        picks = [Pick(sequence, 0, 6, is_drafter=True)]
        (drawn,) = sampler.sample(logits, picks)
        leads = sampler.leads(logits, picks) * (temperature or 1.0)
        for share, is_same in ((0.99, True), (1.01, False)):
            moved = logits.clone()
            for row, token_id in enumerate(drawn):
                moved[row, token_id] -= leads[row] * share
            (again,) = sampler.sample(moved, picks)
            assert all((a == b) is is_same for a, b in zip(drawn, again, strict=True))


def test_cutting_is_off_by_default() -> None:
    assert EngineConfig().entropy is None
    assert GenerationOptions().draft_length is None


def test_the_stats_of_a_strategy_that_does_not_cut_say_nothing_of_cuts(
    models: TinyModels,
) -> None:
    deer = batcher_of(make_engine(models)).strategies["deer"]
    assert isinstance(deer, Deer)
    assert not any(name.startswith("entropy") for name in deer.get_stats())


@pytest.mark.usefixtures("looking")
def test_by_the_rule_of_p_and_q_a_draft_is_verified_as_it_was_planned(models: TinyModels) -> None:
    """Its length must not hang on the drawn tokens; a coupled one beside it is drafted longer."""
    deer, engine = cutting_deer(models), make_engine(models)
    sequences = [
        engine.make_sequence(str(number), tokens(5, number), SamplingParams(max_tokens=50))
        for number in range(2)
    ]
    sequences[0].options = replace(sequences[0].options, acceptance=Acceptance.REJECTION)
    planned = None
    for _ in range(3):
        rows = deer.propose(sequences, ())
        lengths = [row.num_logits for row in rows]
        assert lengths[0] < lengths[1] == deer.source.max_length
        planned = planned or lengths[0]
        # Flat logits: nothing could be less certain.
        drafted = [
            RowsOutput(row, [7] * row.num_logits, torch.zeros(row.num_logits, 300)) for row in rows
        ]
        verified = deer.propose(sequences, drafted)
        assert len(verified[0].token_ids) == 1 + lengths[0] == 1 + planned
        assert len(verified[1].token_ids) < 1 + lengths[1]
