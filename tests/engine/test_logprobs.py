"""Log-probabilities of answers and prompts against transformers' own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.request.outputs import TokenLogprobs
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import (
    Ask,
    TinyModels,
    add,
    batcher_of,
    check_nothing_leaked,
    drain,
    make_engine,
    run_all,
    tokens,
)


def ask(num_prompt: int = 20, max_tokens: int = 12, mode: str = "ar", **more: object) -> Ask:
    params = SamplingParams(seed=4, max_tokens=max_tokens, ignore_eos=True, logprobs=3)
    return Ask(tokens(num_prompt, 4), replace(params, **more), mode=mode)


@pytest.fixture(scope="module")
def reference(models: TinyModels) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(models.verifier_path, attn_implementation="eager")


@torch.inference_mode()
def log_softmax(reference: torch.nn.Module, token_ids: list[int]) -> torch.Tensor:
    """[L, V]; row p is the distribution of the token at p + 1."""
    logits: torch.Tensor = reference(input_ids=torch.tensor([token_ids])).logits[0]
    return logits.float().log_softmax(-1)


def check(expected: torch.Tensor, got: list[TokenLogprobs], token_ids: list[int]) -> None:
    assert [one.token_id for one in got] == token_ids
    for row, one in zip(expected, got, strict=True):
        assert one.logprob is not None
        assert math.isclose(one.logprob, float(row[one.token_id]), abs_tol=1e-4)
        values = torch.tensor([value for _, _, value in one.top])
        torch.testing.assert_close(values, row.topk(len(values)).values, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode", ["ar", "deer", "spec_diff"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logprobs_are_the_log_softmax_of_transformers_before_any_setting(
    models: TinyModels, reference: torch.nn.Module, mode: str, temperature: float
) -> None:
    one = ask(mode=mode, temperature=temperature, frequency_penalty=1.0, top_k=5)
    result = run_all(make_engine(models), [one])[0]
    rows = log_softmax(reference, [*one.prompt, *result.token_ids])
    check(rows[len(one.prompt) - 1 : -1], result.logprobs, result.token_ids)


@pytest.mark.parametrize("chunk", [3, 8, 64])
@pytest.mark.parametrize("max_tokens", [0, 4])
def test_prompt_logprobs_are_right_however_the_prompt_is_read(
    models: TinyModels, reference: torch.nn.Module, chunk: int, max_tokens: int
) -> None:
    one = ask(max_tokens=max_tokens, prompt_logprobs=True)
    engine = make_engine(models, max_step_tokens=chunk, min_prefill_tokens=chunk)
    run_all(engine, [ask()])  # a cached prefix, which must not be used
    result = run_all(engine, [one])[0]
    first, *others = result.prompt_logprobs
    assert (first.token_id, first.logprob) == (one.prompt[0], None)
    check(log_softmax(reference, list(one.prompt))[:-1], others, list(one.prompt[1:]))
    assert len(result.logprobs) == len(result.token_ids) == max_tokens
    assert result.summary is not None and result.summary.num_cached_tokens == 0


def test_prompt_logprobs_are_given_once_though_the_prompt_is_read_twice(
    models: TinyModels,
) -> None:
    asks = [
        ask(20, 30, prompt_logprobs=True, frequency_penalty=1.0, seed=seed) for seed in range(3)
    ]
    expected = [run_all(make_engine(models), [one])[0] for one in asks]
    for chunk in (5, 64):
        engine = make_engine(models, num_pages=24, max_step_tokens=chunk, min_prefill_tokens=chunk)
        results = run_all(engine, asks)
        assert batcher_of(engine).stats.num_preemptions > 0
        assert [one.token_ids for one in results] == [one.token_ids for one in expected]
        for result, alone in zip(results, expected, strict=True):
            ids = [one.token_id for one in result.prompt_logprobs]
            assert ids == [one.token_id for one in alone.prompt_logprobs] == list(asks[0].prompt)
        check_nothing_leaked(engine)


@pytest.mark.parametrize("cut", [1, 2, 7])
def test_a_replay_gives_no_prompt_logprobs_again_and_the_same_tokens(
    models: TinyModels, cut: int
) -> None:
    one = ask(prompt_logprobs=True, repetition_penalty=1.5, frequency_penalty=1.0)
    whole = run_all(make_engine(models), [one])[0]
    for chunk in (9, 64):
        engine = make_engine(models, max_step_tokens=chunk, min_prefill_tokens=chunk)
        rest = run_all(engine, [replace(one, replay=whole.token_ids[:cut])])[0]
        assert rest.prompt_logprobs == []
        assert rest.token_ids == whole.token_ids[cut:]
        assert [one.token_id for one in rest.logprobs] == rest.token_ids


def test_choices_of_one_seed_differ_and_can_be_had_again(models: TinyModels) -> None:
    choices = [replace(ask(), choice=choice) for choice in range(4)]
    first = [result.token_ids for result in run_all(make_engine(models), choices)]
    assert len({tuple(token_ids) for token_ids in first}) == 4
    again = [run_all(make_engine(models), [one])[0].token_ids for one in reversed(choices)]
    assert again[::-1] == first
    other_prompt = replace(ask(), prompt_index=1)
    assert run_all(make_engine(models), [other_prompt])[0].token_ids not in first


def test_no_logprobs_are_made_unasked(models: TinyModels) -> None:
    engine = make_engine(models)
    add(engine, "a", ask(logprobs=None))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert all(one.logprobs is None and one.prompt_logprobs is None for one in outputs)
    drain(engine)
