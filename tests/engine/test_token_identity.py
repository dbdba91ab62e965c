"""Drafting changes no token: `deer` gives what `ar` gives, for any seed, temperature and batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pytest

from engine.generation import registry
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import (
    Ask,
    Result,
    TinyModels,
    batcher_of,
    check_nothing_leaked,
    count_drafts,
    make_engine,
    run_all,
    tokens,
)
from tests.engine.replayed_drafts import ReplayedDrafts

TEMPERATURES = (0.0, 0.7, 1.0)
NUM_TOKENS = 16
SETTINGS: list[dict[str, Any]] = [
    {"ignore_eos": True},
    {"top_p": 0.9},
    {"top_k": 20, "ignore_eos": True},
    {"min_p": 0.02, "stop_token_ids": (7,)},
    {"frequency_penalty": 0.8, "presence_penalty": 0.5},
    {"repetition_penalty": 1.3, "ignore_eos": True},
    {"logit_bias": {5: 6.0, 9: 5.0, 11: -100.0}, "top_k": 40},
    {"min_tokens": 12, "stop": ("a",), "top_p": 0.95, "frequency_penalty": -0.5},
]


def ask(temperature: float, seed: int) -> Ask:
    params = SamplingParams(
        seed=seed, temperature=temperature, max_tokens=NUM_TOKENS, **SETTINGS[seed]
    )
    return Ask(tokens(3 + 5 * seed, seed), params)


ASKS = [ask(temperature, seed) for temperature in TEMPERATURES for seed in range(8)]


@pytest.fixture(scope="module")
def expected(models: TinyModels) -> list[Result]:
    """Each alone, one token at a time, nothing cached."""
    return [run_all(make_engine(models, prefix_cache=False), [one])[0] for one in ASKS]


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install `ReplayedDrafts` by the door that every package has: an entry point."""
    ours = EntryPoint(
        "replayed", "tests.engine.replayed_drafts:ReplayedDrafts", registry.ENTRY_POINT_GROUP
    )
    monkeypatch.setattr(
        registry, "entry_points", lambda *, group: [*entry_points(group=group), ours]
    )
    ReplayedDrafts.answers = {}
    yield
    ReplayedDrafts.answers = {}


def same(results: Sequence[Result], expected: Sequence[Result]) -> None:
    for result, alone in zip(results, expected, strict=True):
        assert result.token_ids == alone.token_ids
        assert (result.text, result.finish_reason) == (alone.text, alone.finish_reason)


def both_happened(results: Sequence[Result], at_least: int = 5) -> None:
    accepted, refused = count_drafts(results)
    assert accepted >= at_least, "the test proves nothing: no draft was accepted"
    assert refused >= at_least, "the test proves nothing: no draft was refused"


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_deer_alone_gives_the_tokens_of_ar(
    models: TinyModels, expected: list[Result], temperature: float
) -> None:
    chosen = [i for i, one in enumerate(ASKS) if one.params.temperature == temperature]
    results = []
    for index in chosen:
        one = replace(ASKS[index], mode="deer", draft_length=1 + index % 5)
        results += run_all(make_engine(models), [one])
    same(results, [expected[index] for index in chosen])
    if temperature:  # weights made by chance never guess the most probable of 512
        both_happened(results)


VARIANTS = {
    "cache": {},
    "no cache": {"prefix_cache": False},
    "chunks of 1": {"max_step_tokens": 1, "min_prefill_tokens": 1},
    "chunks of 7": {"max_step_tokens": 7, "min_prefill_tokens": 7, "page_size": 16},
    "pre-emption": {"num_pages": 32},
}


@pytest.mark.usefixtures("plug_in")
@pytest.mark.parametrize("name", VARIANTS)
def test_a_mixed_batch_gives_each_the_tokens_that_it_gives_alone(
    models: TinyModels, expected: list[Result], name: str
) -> None:
    """All 24 through eight places: three ways of drafting and none, beside each other."""
    ways = [("ar", None), ("deer", None), ("deer", 4), ("replayed", None)]
    asks = []
    for index, one in enumerate(ASKS):
        mode, draft_length = ways[(index + index // 8) % len(ways)]
        asks.append(replace(one, mode=mode, draft_length=draft_length))
    ReplayedDrafts.answers = {}
    for index, one in enumerate(ASKS):
        if asks[index].mode == "replayed":
            key = (tuple(one.prompt), one.params.seed)
            assert key not in ReplayedDrafts.answers
            ReplayedDrafts.answers[key] = expected[index].token_ids
    engine = make_engine(models, **VARIANTS[name])
    results = run_all(engine, asks)
    same(results, expected)
    both_happened([r for r, one in zip(results, asks, strict=True) if one.mode == "deer"])
    both_happened([r for r, one in zip(results, asks, strict=True) if one.mode == "replayed"])
    assert (batcher_of(engine).stats.num_preemptions > 0) == (name == "pre-emption")
    check_nothing_leaked(engine)


@pytest.mark.usefixtures("plug_in")
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_drafts_that_are_often_right_change_nothing_either(
    models: TinyModels, expected: list[Result], temperature: float
) -> None:
    chosen = [i for i, one in enumerate(ASKS) if one.params.temperature == temperature]
    for index in chosen:
        one = ASKS[index]
        ReplayedDrafts.answers[tuple(one.prompt), one.params.seed] = expected[index].token_ids
    engine = make_engine(models)
    results = run_all(engine, [replace(ASKS[index], mode="replayed") for index in chosen])
    same(results, [expected[index] for index in chosen])
    both_happened(results, at_least=20)
    histogram = [0] * 5
    for result in results:
        assert result.summary is not None
        for j, count in enumerate(result.summary.acceptance_histogram):
            histogram[j] += count
    assert all(histogram), "every number of accepted tokens should have occurred"
    assert engine.metrics()["num_verify_forwards"] < NUM_TOKENS, "and fewer forwards were needed"


def test_a_prompt_found_in_the_cache_gives_the_same_tokens(
    models: TinyModels, expected: list[Result]
) -> None:
    engine = make_engine(models)
    deer = [replace(one, mode="deer", draft_length=3) for one in ASKS]
    first = run_all(engine, deer[:8])
    second = run_all(engine, deer[:8])
    same(first, expected[:8])
    same(second, expected[:8])
    assert sum(r.summary.num_cached_tokens for r in second if r.summary) > 100


def test_a_prompt_half_read_lends_its_settings_to_nobody(models: TinyModels) -> None:
    """It has no logits yet, and those before its place in the batch are another's."""
    plain = Ask(tokens(5, 1), SamplingParams(seed=1, max_tokens=12, ignore_eos=True))
    biased = replace(
        plain, prompt=tokens(60, 2), params=replace(plain.params, logit_bias={5: 50.0})
    )
    alone = run_all(make_engine(models), [plain])[0]
    engine = make_engine(models, max_step_tokens=8, min_prefill_tokens=8)
    same(run_all(engine, [plain, biased])[:1], [alone])


def test_a_drafter_row_is_penalised_and_biased_like_its_verifier(models: TinyModels) -> None:
    """A drafter that knows nothing of a strong bias would have all its drafts refused."""
    params = SamplingParams(
        seed=1, temperature=1.0, max_tokens=30, logit_bias={5: 30.0}, ignore_eos=True
    )
    one = Ask(tokens(6, 1), params, mode="deer", draft_length=4)
    result = run_all(make_engine(models), [one])[0]
    accepted, refused = count_drafts([result])
    assert accepted > refused
