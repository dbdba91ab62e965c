"""Sequences that wait for pages from outside: never in others' way, never longer than it pays."""

from __future__ import annotations

import pytest

from engine.cache.fetch_rule import FetchRule
from engine.cache.page_store import StoreCosts
from engine.dfastllm_engine import DFastLLMEngine
from tests.engine.engines import (
    TinyModels,
    add,
    batcher_of,
    check_nothing_leaked,
    drain,
    make_engine,
)
from tests.engine.shelf_store import ShelfStore
from tests.engine.test_lower_floors import PREFIX, ask, cached


@pytest.fixture
def store(models: TinyModels) -> ShelfStore:
    """Holds a prefix, and gives it out when it is told to."""
    store = ShelfStore(is_instant=False)
    engine = make_engine(models)
    engine.use_page_store(store)
    add(engine, "first", ask())
    store.deliver(store.fetches.pop())
    drain(engine)
    assert store.shelf
    return store


@pytest.fixture
def fresh(models: TinyModels, store: ShelfStore) -> DFastLLMEngine:
    """Another engine on the same store, which would wait for ages: a token takes it a second."""
    engine = make_engine(models)
    engine.use_page_store(store)
    rule_of(engine).note_prefill = lambda *_: None  # type: ignore[method-assign]
    return engine


def rule_of(engine: DFastLLMEngine) -> FetchRule:
    floors = batcher_of(engine).prefix_cache.floors
    assert floors is not None
    return floors.rule


def cached_tokens(engine: DFastLLMEngine, name: str) -> int:
    summary = drain(engine)[name].summary
    assert summary is not None
    return summary.num_cached_tokens


def test_others_run_while_one_waits_for_its_pages(fresh: DFastLLMEngine, store: ShelfStore) -> None:
    add(fresh, "waits", ask(tail=5))
    add(fresh, "runs", ask(seed=7, prefix=2, tail=1))
    assert (fresh.num_running, fresh.num_waiting) == (0, 2)
    seen = [output.sequence_id for _ in range(9) for output in fresh.step()]
    assert seen
    assert set(seen) == {"runs"}
    store.deliver(store.fetches[0])
    assert cached_tokens(fresh, "waits") == PREFIX
    check_nothing_leaked(fresh)


def test_what_does_not_come_in_time_is_computed_and_nobody_fetches_on(
    models: TinyModels, fresh: DFastLLMEngine, store: ShelfStore
) -> None:
    rule_of(fresh).token_s = 1e-4
    expected = cached(make_engine(models), ask(tail=5))
    assert cached(fresh, ask(tail=5)) == expected
    assert store.fetches[0].is_cancelled
    assert fresh.metrics()["num_fetches_given_up"] == 1
    check_nothing_leaked(fresh)


def test_of_a_fetch_that_breaks_off_what_has_come_is_used(
    models: TinyModels, fresh: DFastLLMEngine, store: ShelfStore
) -> None:
    expected = cached(make_engine(models), ask(tail=5))[0]
    add(fresh, "a", ask(tail=5))
    store.deliver(store.fetches[0], most=3)
    rule_of(fresh).token_s = 1e-6
    result = drain(fresh)["a"]
    assert result.token_ids == expected
    assert result.summary is not None
    assert result.summary.num_cached_tokens == 12
    check_nothing_leaked(fresh)


def test_two_with_one_prefix_share_a_fetch(fresh: DFastLLMEngine, store: ShelfStore) -> None:
    add(fresh, "a", ask(tail=5))
    add(fresh, "b", ask(tail=7))
    (fetch,) = store.fetches
    fresh.abort("a")
    assert not fetch.is_cancelled
    store.deliver(fetch)
    assert cached_tokens(fresh, "b") == PREFIX
    check_nothing_leaked(fresh)


def test_an_abort_while_waiting_leaves_nothing(fresh: DFastLLMEngine, store: ShelfStore) -> None:
    add(fresh, "a", ask(tail=5))
    fresh.abort("a")
    assert store.fetches[0].is_cancelled
    store.deliver(store.fetches[0])
    assert drain(fresh) == {}
    check_nothing_leaked(fresh)


def test_one_that_is_pre_empted_later_is_read_again(models: TinyModels, store: ShelfStore) -> None:
    engine = make_engine(models, num_pages=24, max_model_len=90)
    engine.use_page_store(store)
    expected = [cached(make_engine(models), ask(tail=tail))[0] for tail in (5, 7)]
    add(engine, "a", ask(tail=5))
    add(engine, "b", ask(tail=7))
    store.deliver(store.fetches[0])
    results = drain(engine)
    assert [results[name].token_ids for name in "ab"] == expected
    check_nothing_leaked(engine)


@pytest.mark.parametrize(
    ("costs", "why"),
    [
        (None, "the store does not answer"),
        (StoreCosts(5.0, 0.0), "a look takes longer than a tenth of reading 44 tokens"),
        (StoreCosts(0.0, 3.0), "a page takes longer than half of reading its 4 tokens"),
    ],
)
def test_a_store_that_costs_too_much_is_not_asked(
    models: TinyModels, store: ShelfStore, costs: StoreCosts | None, why: str
) -> None:
    engine = make_engine(models)
    engine.use_page_store(store)
    store.costs = costs
    assert cached(engine, ask(tail=5))[1] == 0, why
    assert store.fetches == []


def test_what_nobody_would_fetch_is_not_offered(models: TinyModels) -> None:
    store = ShelfStore(costs=StoreCosts(5.0, 0.0))
    engine = make_engine(models)
    engine.use_page_store(store)
    cached(engine, ask())
    assert store.shelf == {}


def test_the_rule_learns_from_prompts_what_a_token_costs() -> None:
    rule = FetchRule(page_size=16, token_s=1.0)
    for _ in range(60):
        rule.note_prefill(100, 0.2)
    assert rule.computing_s(2) == pytest.approx(2 * 16 * 0.002, rel=1e-3)


def test_nobody_waits_longer_than_half_of_the_computing() -> None:
    rule = FetchRule(page_size=16, token_s=0.001)
    assert rule.patience_s(64, None) == pytest.approx(0.512)
    assert rule.patience_s(64, 10) == pytest.approx(0.08)
    assert rule.patience_s(64, 0) == 0
