"""What DEER proposes: no draft where none pays, and no prompt is read only to try one."""

from __future__ import annotations

import dataclasses

import pytest

from engine.draft_planner import CostCurve
from engine.generation.deer import Deer
from engine.generation.strategy import ModelRole
from engine.request.options import GenerationOptions
from engine.request.sampling_params import SamplingParams
from engine.step_costs import DraftCosts
from tests.engine.engines import TinyModels, make_engine, strategy_context, tokens


def test_a_prompt_that_nobody_was_drafted_for_is_read_to_try_it_but_seldom(
    models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    dear = dataclasses.replace(strategy_context(models), draft_costs=[(1, 10.0), (16, 160.0)])
    deer, engine = Deer(dear), make_engine(models)
    sequences = [
        engine.make_sequence(str(number), tokens(5, number), SamplingParams(max_tokens=50))
        for number in range(8)
    ]
    deer.propose(sequences, ())
    monkeypatch.setattr(deer.source, "num_unread", lambda sequence: 500)
    asked = []
    for _ in range(600):
        rows = deer.propose(sequences, ())
        if rows[0].model is ModelRole.DRAFTER:
            asked.append([row.sequence.sequence_id for row in rows])
    assert asked == [["0"]] * 2


@pytest.mark.parametrize("pays", [True, False])
def test_a_long_prompt_is_read_to_draft_only_where_drafts_pay_for_others(
    models: TinyModels, monkeypatch: pytest.MonkeyPatch, pays: bool
) -> None:
    cheap, dear = [(1, 1e-5), (16, 2e-5)], [(1, 10.0), (16, 160.0)]
    costs = cheap if pays else dear
    deer = Deer(dataclasses.replace(strategy_context(models), draft_costs=costs))
    engine, unread = make_engine(models), {"0": 0, "1": 500}
    monkeypatch.setattr(deer.source, "num_unread", lambda sequence: unread[sequence.sequence_id])
    read, long = (
        engine.make_sequence(name, tokens(5, 1), SamplingParams(max_tokens=50)) for name in unread
    )
    deer.propose([read], ())
    deer.lengths.planner._draft_cost = DraftCosts(CostCurve(cheap))  # so a plan alone would draft
    rows = deer.propose([long], ())
    assert (rows[0].model is ModelRole.DRAFTER) == pays
    asked = engine.make_sequence(
        "1", tokens(5, 1), SamplingParams(max_tokens=50), options=GenerationOptions(draft_length=2)
    )
    assert deer.propose([asked], ())[0].model is ModelRole.DRAFTER, "the client has chosen"
