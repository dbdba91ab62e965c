"""Places, chunks, pages and pre-emptions: who takes part in a step, and that nobody is harmed."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from engine.request.outputs import FinishReason
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import (
    Ask,
    Result,
    TinyModels,
    add,
    batcher_of,
    check_nothing_leaked,
    drain,
    make_engine,
    run_all,
    tokens,
)


def ask(
    num_prompt: int = 5, max_tokens: int = 6, seed: int = 0, mode: str = "ar", **more: Any
) -> Ask:
    params = SamplingParams(
        seed=seed, max_tokens=max_tokens, temperature=1.0, ignore_eos=True, **more
    )
    return Ask(tokens(num_prompt, seed), params, mode=mode)


def alone(models: TinyModels, asks: list[Ask]) -> list[list[int]]:
    """What each gives in an engine of its own, with all the pages it may want."""
    return [run_all(make_engine(models), [one])[0].token_ids for one in asks]


def test_a_step_with_nothing_to_do_gives_nothing(models: TinyModels) -> None:
    engine = make_engine(models)
    assert engine.step() == []
    add(engine, "a", ask())
    drain(engine)
    assert engine.step() == []
    check_nothing_leaked(engine)


def test_a_freed_place_is_filled_at_the_next_step(models: TinyModels) -> None:
    engine = make_engine(models, max_batch_size=2)
    for name, count in (("short", 2), ("long", 9), ("late", 3)):
        add(engine, name, ask(max_tokens=count))
    engine.step()
    assert (engine.num_running, engine.num_waiting) == (2, 1)
    ended = [output.sequence_id for output in engine.step() if output.finish_reason]
    assert ended == ["short"]
    assert "late" in {output.sequence_id for output in engine.step()}
    drain(engine)
    check_nothing_leaked(engine)


def test_first_come_first_served(models: TinyModels) -> None:
    engine = make_engine(models, max_batch_size=1)
    for name in "abcd":
        add(engine, name, ask(max_tokens=2))
    finished = []
    while engine.has_work:
        finished += [out.sequence_id for out in engine.step() if out.finish_reason]
    assert finished == list("abcd")


def test_a_prompt_is_read_in_chunks_and_gives_what_it_gives_in_one(models: TinyModels) -> None:
    whole = run_all(make_engine(models, max_step_tokens=256), [ask(100)])[0]
    for chunk in (1, 7, 32):
        engine = make_engine(models, max_step_tokens=chunk, min_prefill_tokens=chunk)
        add(engine, "a", ask(100))
        for _ in range(-(-100 // chunk) - 1):
            assert engine.step() == []
        assert drain(engine)["a"].token_ids == whole.token_ids
        assert batcher_of(engine).stats.num_prompt_tokens == 100


def test_decode_goes_on_while_a_long_prompt_is_read(models: TinyModels) -> None:
    engine = make_engine(models, max_step_tokens=16, min_prefill_tokens=16)
    add(engine, "talks", ask(max_tokens=30))
    engine.step()
    add(engine, "reads", ask(100, seed=1))
    for _ in range(6):  # 96 of 100 tokens
        assert [output.sequence_id for output in engine.step()] == ["talks"]
    assert {output.sequence_id for output in engine.step()} == {"talks", "reads"}
    drain(engine)


def test_prompts_get_their_share_however_many_decode(models: TinyModels) -> None:
    engine = make_engine(models, max_step_tokens=2, min_prefill_tokens=8)
    for seed in range(4):
        add(engine, f"talks {seed}", ask(3, max_tokens=40, seed=seed))
    for _ in range(4):
        engine.step()
    add(engine, "reads", ask(24, max_tokens=1))
    outputs = [output for _ in range(3) for output in engine.step()]
    assert "reads" in {output.sequence_id for output in outputs}
    drain(engine)


@pytest.mark.parametrize("mode", ["ar", "deer"])
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_preemption_changes_no_output_and_leaks_no_page(
    models: TinyModels, mode: str, prefix_cache: bool
) -> None:
    asks = [ask(9 + 2 * seed, max_tokens=40, seed=seed, mode=mode) for seed in range(5)]
    asks[2] = replace(asks[2], params=replace(asks[2].params, frequency_penalty=1.0))
    engine = make_engine(models, num_pages=30, prefix_cache=prefix_cache)
    results = run_all(engine, asks)
    assert [result.token_ids for result in results] == alone(models, asks)
    assert batcher_of(engine).stats.num_preemptions > 0
    assert engine.metrics()["num_preemptions"] == batcher_of(engine).stats.num_preemptions
    check_nothing_leaked(engine)


def test_a_prompt_that_is_still_read_may_preempt_one_that_decodes(models: TinyModels) -> None:
    """The younger one was already chosen to decode when the older one took its pages."""
    asks = [ask(100, max_tokens=5), ask(8, max_tokens=30, seed=1)]
    expected = alone(models, asks)
    engine = make_engine(models, num_pages=30, max_step_tokens=8, min_prefill_tokens=8)
    run_all(engine, [replace(asks[1], params=replace(asks[1].params, max_tokens=12))])
    add(engine, "old", asks[0])
    engine.step()
    # All but the last token of what it said before is in the cache, so it decodes at once.
    add(engine, "young", replace(asks[1], replay=expected[1][:5]))
    batcher = batcher_of(engine)
    results = drain(engine)
    assert [results[name].token_ids for name in ("old", "young")] == [expected[0], expected[1][5:]]
    assert batcher.stats.num_preemptions > 0
    check_nothing_leaked(engine)


def test_pages_that_a_running_prompt_will_need_are_not_given_away(models: TinyModels) -> None:
    """Or the newcomer would be let in, pre-empted, let in again, and read many times over."""
    engine = make_engine(models, num_pages=18, max_step_tokens=8, min_prefill_tokens=8)
    add(engine, "old", ask(60, max_tokens=5))
    engine.step()
    add(engine, "new", ask(20, max_tokens=5, seed=1))
    engine.step()
    assert (engine.num_running, engine.num_waiting) == (1, 1)
    drain(engine)
    assert batcher_of(engine).stats.num_preemptions == 0


def test_the_youngest_is_preempted_and_comes_back_first(models: TinyModels) -> None:
    engine = make_engine(models, num_pages=12, max_batch_size=3)
    for seed, name in enumerate(("old", "young", "waiting")):
        add(engine, name, ask(8, max_tokens=30, seed=seed))
    finished = []
    while engine.has_work:
        finished += [out.sequence_id for out in engine.step() if out.finish_reason]
        batcher_of(engine).pool.check()
    assert finished == ["old", "young", "waiting"]
    assert batcher_of(engine).stats.num_preemptions > 0


def test_aborting_a_waiting_sequence_leaves_the_others_alone(models: TinyModels) -> None:
    engine = make_engine(models, max_batch_size=1)
    for name in ("a", "b", "c"):
        add(engine, name, ask())
    engine.step()
    engine.abort("b")
    assert engine.num_waiting == 1
    assert set(drain(engine)) == {"a", "c"}
    check_nothing_leaked(engine)


@pytest.mark.parametrize("num_steps", [1, 3, 8])
def test_aborting_a_running_sequence_frees_its_pages_at_once(
    models: TinyModels, num_steps: int
) -> None:
    engine = make_engine(models, max_step_tokens=16, prefix_cache=False)
    add(engine, "a", ask(50, max_tokens=50, mode="deer"))
    for _ in range(num_steps):
        engine.step()
    assert engine.metrics()["num_pages_held"] > 0
    engine.abort("a")
    check_nothing_leaked(engine)
    assert engine.step() == []


def test_aborting_what_is_not_there_is_no_fault(models: TinyModels) -> None:
    engine = make_engine(models)
    engine.abort("nobody")
    add(engine, "a", ask())
    drain(engine)
    engine.abort("a")
    check_nothing_leaked(engine)


def test_a_replay_that_has_ended_is_reported_and_takes_no_place(models: TinyModels) -> None:
    engine = make_engine(models)
    first = run_all(engine, [ask(max_tokens=4)])[0]
    rerun = replace(ask(max_tokens=4), replay=first.token_ids)
    add(engine, "again", rerun)
    assert engine.has_work
    (output,) = engine.step()
    assert (output.token_ids, output.text) == ((), "")
    assert output.finish_reason is FinishReason.LENGTH
    check_nothing_leaked(engine)


def test_a_replay_that_has_ended_can_be_aborted(models: TinyModels) -> None:
    engine = make_engine(models)
    add(engine, "again", replace(ask(max_tokens=2), replay=[1, 2]))
    engine.abort("again")
    assert engine.step() == []
    check_nothing_leaked(engine)


@pytest.mark.parametrize("mode", ["ar", "deer"])
def test_a_replay_continues_with_the_tokens_of_the_first_run(models: TinyModels, mode: str) -> None:
    one = ask(13, max_tokens=14, mode=mode, frequency_penalty=0.5)
    whole = run_all(make_engine(models), [one])[0]
    for cut in (1, 2, 5, 13):
        engine = make_engine(models)
        rest = run_all(engine, [replace(one, replay=whole.token_ids[:cut])])[0]
        assert rest.token_ids == whole.token_ids[cut:]
        assert rest.summary is not None
        assert rest.summary.num_output_tokens == 14
        check_nothing_leaked(engine)


def test_cached_tokens_are_counted_truly(models: TinyModels) -> None:
    engine = make_engine(models)
    first = run_all(engine, [ask(21)])[0]
    second = run_all(engine, [ask(21)])[0]
    replayed = run_all(engine, [replace(ask(21), replay=first.token_ids[:3])])[0]
    stranger = run_all(engine, [replace(ask(21), cache_salt="another tenant")])[0]
    summaries = [one.summary for one in (first, second, replayed, stranger)]
    assert [one and one.num_cached_tokens for one in summaries] == [0, 20, 20, 0]
    assert first.token_ids == second.token_ids == stranger.token_ids


def test_reading_again_what_it_computed_itself_is_no_cache_hit(models: TinyModels) -> None:
    engine = make_engine(models, num_pages=19, max_step_tokens=4, min_prefill_tokens=4)
    asks = [ask(20, max_tokens=40), ask(50, max_tokens=5, seed=1)]
    results = run_all(engine, asks)
    assert batcher_of(engine).stats.num_preemptions > 0
    assert [r.summary and r.summary.num_cached_tokens for r in results] == [0, 0]


def test_max_tokens_zero_reads_the_prompt_and_ends(models: TinyModels) -> None:
    engine = make_engine(models)
    for mode in ("ar", "deer"):
        result = run_all(engine, [ask(10, max_tokens=0, mode=mode)])[0]
        assert (result.token_ids, result.finish_reason) == ([], FinishReason.LENGTH)
    check_nothing_leaked(engine)


def test_a_sequence_may_fill_the_whole_context(models: TinyModels) -> None:
    for mode in ("ar", "deer"):
        engine = make_engine(models, max_model_len=24, num_pages=6)
        result = run_all(engine, [replace(ask(20, mode=mode), params=SamplingParams(seed=1))])[0]
        assert len(result.token_ids) <= 4
        check_nothing_leaked(engine)


def test_a_name_used_again_gets_the_settings_of_its_new_request(models: TinyModels) -> None:
    """Settings once made into tensors are kept, and were found again by the name alone."""
    greedy = replace(ask(), params=replace(ask().params, temperature=0.0))
    engine = make_engine(models)
    run_all(engine, [greedy])
    assert run_all(engine, [ask()])[0].token_ids == alone(models, [ask()])[0]


@pytest.mark.parametrize("seed", [0, 2])
def test_chance_arrivals_and_aborts_harm_nobody(models: TinyModels, seed: int) -> None:
    """The bad luck of some (pre-empted, aborted) must not show in what the others give."""
    chance = random.Random(seed)
    asks = {
        f"s{i}": ask(chance.randint(1, 30), chance.randint(1, 25), i, chance.choice(["ar", "deer"]))
        for i in range(14)
    }
    expected = dict(zip(asks, alone(models, list(asks.values())), strict=True))
    engine = make_engine(models, num_pages=30, max_batch_size=5, max_step_tokens=24)
    doomed = set(chance.sample(sorted(asks), 4))
    results: dict[str, Result] = {}
    to_come = list(asks)
    while to_come or engine.has_work:
        while to_come and chance.random() < 0.5:
            name = to_come.pop(0)
            add(engine, name, asks[name])
        for output in engine.step():
            results.setdefault(output.sequence_id, Result()).take(output)
        batcher_of(engine).pool.check()
        if doomed and chance.random() < 0.2:
            name = doomed.pop()
            if name not in to_come:
                engine.abort(name)
                results.pop(name, None)
                expected.pop(name)
    assert batcher_of(engine).stats.num_preemptions > 0
    for name, token_ids in expected.items():
        assert results[name].token_ids == token_ids, name
    check_nothing_leaked(engine)


def test_every_token_is_counted(models: TinyModels) -> None:
    engine = make_engine(models)
    results = run_all(engine, [ask(7, 5, 1), ask(9, 8, 2, "deer")])
    metrics = engine.metrics()
    assert metrics["num_output_tokens"] == sum(len(result.token_ids) for result in results)
    assert metrics["num_prompt_tokens"] == 16
    assert metrics["num_finished"] == 2
    assert metrics["num_requests_running"] == metrics["num_pages_held"] == 0
    engine.reset_stats()
    assert engine.metrics()["num_output_tokens"] == 0


def test_the_histogram_accounts_for_every_drafted_step(models: TinyModels) -> None:
    one = replace(ask(7, 30, 1, "deer"), draft_length=3)
    result = run_all(make_engine(models), [one])[0]
    assert result.summary is not None
    histogram = result.summary.acceptance_histogram
    # The first token is the prompt's; every step gives what it accepted, and one more.
    assert 1 + sum((j + 1) * count for j, count in enumerate(histogram)) == 30
    assert result.summary.num_draft_tokens >= sum(j * n for j, n in enumerate(histogram))
