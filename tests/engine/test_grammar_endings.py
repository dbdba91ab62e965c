"""How an output within a grammar ends: whole, cut, stopped, or at a dead end that harms nobody."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from engine.request import grammar_compiler
from engine.request.errors import InvalidRequestError
from engine.request.grammar import Grammar, GrammarKind
from engine.request.outputs import FinishReason
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import (
    Ask,
    TinyModels,
    check_nothing_leaked,
    make_engine,
    run_all,
    tokens,
)
from tests.engine.test_grammar_decoding import (
    AMBIGUOUS,
    ASKS,
    CHOICE,
    REGEX,
    TEMPERATURES,
    ask,
    matches,
)
from tests.engine.test_token_identity import same


def test_a_complete_output_ends_by_itself(models: TinyModels) -> None:
    """No token for the end is needed, so not even a request for more tokens can ask for one."""
    for settings in ({}, {"ignore_eos": True}, {"min_tokens": 20}):
        one = ask(0.7, 1, **settings)
        result = run_all(make_engine(models), [one])[0]
        assert result.finish_reason is FinishReason.STOP
        assert matches(REGEX, result.text)
        assert not models.tokenizer.eos_token_ids & set(result.token_ids)
        limited = replace(
            one, params=replace(one.params, max_tokens=len(result.token_ids), min_tokens=0)
        )
        assert run_all(make_engine(models), [limited])[0].finish_reason is FinishReason.STOP


def test_where_the_grammar_may_end_or_go_on_the_model_decides(models: TinyModels) -> None:
    eos = min(models.tokenizer.eos_token_ids)
    params = SamplingParams(
        seed=3, max_tokens=12, grammar=Grammar(GrammarKind.REGEX, "[ab]+"), logit_bias={eos: 50.0}
    )
    prompt = tokens(5, 5)
    ended = run_all(make_engine(models), [Ask(prompt, params)])[0]
    assert ended.finish_reason is FinishReason.STOP
    assert len(ended.token_ids) == 2 and ended.token_ids[-1] == eos
    for settings, count in (({"min_tokens": 5}, 6), ({"ignore_eos": True}, 12)):
        result = run_all(make_engine(models), [Ask(prompt, replace(params, **settings))])[0]
        assert len(result.token_ids) == count
        assert re.fullmatch("[ab]+", result.text)


def test_an_output_cut_by_its_limit_says_so(models: TinyModels) -> None:
    one = ask(1.0, 0)
    result = run_all(make_engine(models), [replace(one, params=replace(one.params, max_tokens=4))])[
        0
    ]
    assert result.finish_reason is FinishReason.LENGTH
    assert len(result.token_ids) == 4


def test_a_stop_string_ends_the_output_before_the_grammar_does(models: TinyModels) -> None:
    params = SamplingParams(grammar=CHOICE, stop=("lo",), temperature=0.0, max_tokens=30)
    choice = Grammar(GrammarKind.CHOICE, '["hello world"]')
    result = run_all(make_engine(models), [Ask([1, 2], replace(params, grammar=choice))])[0]
    assert (result.text, result.finish_reason) == ("hel", FinishReason.STOP)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_dead_end_ends_its_sequence_and_nobody_elses(
    models: TinyModels, temperature: float
) -> None:
    """After three letters only '>' is left, which may not be said before the 20th token."""
    (closing,) = models.tokenizer.encode(">")
    params = SamplingParams(
        temperature=temperature,
        max_tokens=30,
        min_tokens=20,
        stop_token_ids=(closing,),
        grammar=Grammar(GrammarKind.REGEX, "<[ab]{3}>"),
        top_p=0.9,
    )
    stuck = Ask(tokens(5, 1), params, mode="deer", draft_length=4)
    results = run_all(
        make_engine(models), [ASKS[0], stuck, replace(stuck, mode="ar", draft_length=None), ASKS[9]]
    )
    same([results[0], results[3]], [run_all(make_engine(models), [ASKS[i]])[0] for i in (0, 9)])
    same([results[1]], [results[2]])
    assert results[1].finish_reason is FinishReason.LENGTH, "what was begun is not whole"
    assert re.fullmatch("<[ab]{3}", results[1].text)


def test_a_grammar_that_becomes_too_tangled_ends_its_output_at_the_same_place(
    models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every token there are more ways to read what was said, until llguidance gives up."""
    monkeypatch.setattr(grammar_compiler, "MAX_READINGS_OF_GRAMMAR", 100)
    grammar = Grammar(GrammarKind.GRAMMAR, AMBIGUOUS)
    params = SamplingParams(grammar=grammar, max_tokens=200, ignore_eos=True)
    one = Ask(tokens(5, 1), params)
    alone = run_all(make_engine(models), [one])[0]
    assert alone.finish_reason is not None
    assert 5 < len(alone.token_ids) < 200, "the test proves nothing"
    drafted = [replace(one, mode="deer", draft_length=length) for length in (2, 5)]
    engine = make_engine(models)
    same(run_all(engine, [*drafted, ASKS[1]])[:2], [alone, alone])
    check_nothing_leaked(engine)


def test_a_bad_grammar_is_refused_when_the_sequence_is_made(models: TinyModels) -> None:
    params = SamplingParams(grammar=Grammar(GrammarKind.REGEX, "(", "guided_regex"))
    with pytest.raises(InvalidRequestError, match="unclosed") as caught:
        make_engine(models).make_sequence("s", [1], params)
    assert caught.value.param == "guided_regex"
