"""What DEER proposes: probes that keep its estimates fresh, and no draft where none pays."""

from __future__ import annotations

import dataclasses

import pytest

from engine.draft_planner import CostCurve
from engine.generation.deer import Deer
from engine.generation.strategy import ModelRole
from engine.request.options import GenerationOptions
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import TinyModels, make_engine, strategy_context, tokens


def test_where_drafts_never_pay_one_sequence_in_eight_is_probed_now_and_then(
    models: TinyModels,
) -> None:
    dear = dataclasses.replace(strategy_context(models), draft_costs=[(1, 10.0), (16, 160.0)])
    deer, engine = Deer(dear), make_engine(models)
    sequences = [
        engine.make_sequence(str(number), tokens(5, number), SamplingParams(max_tokens=50))
        for number in range(16)
    ]
    probed: list[list[str]] = []
    for _ in range(32 * 8):
        rows = deer.propose(sequences, ())
        if rows[0].model is ModelRole.DRAFTER:
            probed.append([row.sequence.sequence_id for row in rows])
        else:
            assert [len(row.token_ids) for row in rows] == [1] * 16
    assert [len(names) for names in probed] == [2] * 8
    assert len({name for names in probed for name in names}) == 16, "everybody has a turn"


def test_where_to_read_a_prompt_costs_much_a_probe_takes_a_sequence_that_has_been_read(
    models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    dear = dataclasses.replace(strategy_context(models), draft_costs=[(1, 10.0), (16, 160.0)])
    deer, engine = Deer(dear), make_engine(models)
    monkeypatch.setattr(
        deer.source, "num_unread", lambda sequence: 0 if sequence.sequence_id in "27" else 500
    )
    sequences = [
        engine.make_sequence(str(number), tokens(5, number), SamplingParams(max_tokens=50))
        for number in range(8)
    ]
    probed = set()
    for _ in range(32 * 8):
        rows = deer.propose(sequences, ())
        if rows[0].model is ModelRole.DRAFTER:
            probed |= {row.sequence.sequence_id for row in rows}
    assert probed == {"2", "7"}


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
    deer.source.cost = CostCurve(cheap)  # so that the plan alone would draft in any case
    rows = deer.propose([long], ())
    assert (rows[0].model is ModelRole.DRAFTER) == pays
    asked = engine.make_sequence(
        "1", tokens(5, 1), SamplingParams(max_tokens=50), options=GenerationOptions(draft_length=2)
    )
    assert deer.propose([asked], ())[0].model is ModelRole.DRAFTER, "the client has chosen"
