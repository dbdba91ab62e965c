"""What a step shows of itself where it is asked to, and that showing changes nothing."""

from __future__ import annotations

from dataclasses import replace

from engine.build import EngineConfig, build_engine
from engine.request.options import GenerationOptions
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import Ask, TinyModels, make_engine, run_all, tokens

PARAMS = SamplingParams(seed=3, temperature=0.7, max_tokens=24)
SHOWN = GenerationOptions(shows_steps=True)


def test_traces_say_what_was_drafted_and_stood(models: TinyModels) -> None:
    asks = [
        Ask(tokens(9, seed), PARAMS, mode="deer", draft_length=4, options=SHOWN)
        for seed in range(4)
    ]
    plain = [replace(ask, options=GenerationOptions()) for ask in asks]
    results = run_all(make_engine(models), asks)
    for result, unseen in zip(results, run_all(make_engine(models), plain), strict=True):
        assert result.token_ids == unseen.token_ids
        assert unseen.traces == []
        assert result.summary is not None
        assert sum(len(trace.drafted) for trace in result.traces) == result.summary.num_draft_tokens
        place = 1  # the first token comes of the prompt
        for trace in result.traces:
            stood = trace.drafted[: trace.num_accepted]
            assert list(stood) == result.token_ids[place : place + len(stood)]
            place += len(stood) + 1
    assert any(trace.num_accepted for result in results for trace in result.traces)


def test_snapshots_fill_up_to_the_text() -> None:
    engine = build_engine(EngineConfig(self_test=False))
    prompt = engine.tokenizer.encode("Once upon a time")
    for mode in ("semi_ar", "diffusion"):
        ask = Ask(prompt, replace(PARAMS, temperature=0.0), mode=mode)
        (plain,) = run_all(engine, [ask])
        (shown,) = run_all(engine, [replace(ask, options=SHOWN)])
        assert shown.token_ids == plain.token_ids
        pending = [trace.pending for trace in shown.traces]
        assert any(None in one for one in pending)
        revealed = {token_id for one in pending for token_id in one} - {None}
        assert revealed
        assert revealed <= set(shown.token_ids) | set(pending[-1])
