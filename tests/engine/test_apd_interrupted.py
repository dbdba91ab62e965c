"""A mixture of `apd` is the same however much of its context had to be read again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.generation import diffusion_reader
from engine.request.options import GenerationOptions
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import (
    Ask,
    Result,
    TinyModels,
    add,
    batcher_of,
    check_nothing_leaked,
    make_engine,
    run_all,
    tokens,
)
from tests.engine.tiny_diffusion import KINDS, tiny_diffusion

MIXTURE = GenerationOptions(apd_mix_weight=0.5, apd_lookahead=4)


@pytest.fixture
def ours(models: TinyModels, monkeypatch: pytest.MonkeyPatch) -> TinyModels:
    monkeypatch.setattr(diffusion_reader, "MAX_READ_ROWS", 8)
    return tiny_diffusion(models, KINDS["ours"])


def ask(seed: int) -> Ask:
    params = SamplingParams(seed=seed, max_tokens=16, ignore_eos=True)
    return Ask(tokens(5, seed), params, "apd", options=MIXTURE)


def test_a_pre_emption_leaves_no_tokens_of_the_verifier_alone(ours: TinyModels) -> None:
    asks = [ask(seed) for seed in range(8)]
    alone = [run_all(make_engine(ours), [one])[0].token_ids for one in asks]
    engine = make_engine(ours, num_pages=20)
    assert [result.token_ids for result in run_all(engine, asks)] == alone
    assert batcher_of(engine).stats.num_preemptions > 3
    check_nothing_leaked(engine)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_rerun_goes_on_with_the_mixture(ours: TinyModels, seed: int) -> None:
    engine, whole, cuts = make_engine(ours), Result(), []
    add(engine, "0", ask(seed))
    while engine.has_work:
        for output in engine.step():
            whole.take(output)
            cuts.append(len(whole.token_ids))
    for cut in cuts[:-1]:
        (rest,) = run_all(make_engine(ours), [replace(ask(seed), replay=whole.token_ids[:cut])])
        assert rest.token_ids == whole.token_ids[cut:]
