"""Generation within a grammar: the tokens of `ar` in every mode, and an end in every case."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

import pytest

from engine.build import EngineConfig, build_engine
from engine.decoding.logit_processors import needs_processing
from engine.generation.autoregressive import Autoregressive
from engine.request.errors import InvalidRequestError
from engine.request.grammar import Grammar, GrammarKind
from engine.request.grammar_compiler import GrammarCompiler
from engine.request.options import Acceptance, GenerationOptions
from engine.request.outputs import FinishReason
from engine.request.sampling_params import SamplingParams
from engine.request.sequence import Sequence
from tests.engine.engines import (
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
from tests.engine.replayed_drafts import ReplayedDrafts
from tests.engine.test_draft_heads import with_markov_head
from tests.engine.test_token_identity import same

TEMPERATURES = (0.0, 0.7, 1.0)
NUM_TOKENS = 24
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "minimum": 0, "maximum": 99},
        "b": {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["a", "b"],
    "additionalProperties": False,
}
JSON = Grammar(GrammarKind.JSON, json.dumps(SCHEMA))
PATTERN = r"[ab]{6}(hello|[0-9]{3,9})\."
REGEX = Grammar(GrammarKind.REGEX, PATTERN)
CHOICES = ["hello world", "hello", "goodbye to all of you"]
CHOICE = Grammar(GrammarKind.CHOICE, json.dumps(CHOICES))
NESTED = Grammar(GrammarKind.GRAMMAR, 'start: "<" body ">"\nbody: /[ab]{8,12}/ | "<" body ">"\n')
AMBIGUOUS = 'start: a a a a a a a a\na: a a | a "x" | "x" | ""\n'
GRAMMARS = (JSON, REGEX, CHOICE, NESTED)


def ask(temperature: float, index: int, **settings: Any) -> Ask:
    params = SamplingParams(
        seed=index,
        temperature=temperature,
        max_tokens=60 if index % 4 == 0 else NUM_TOKENS,
        grammar=GRAMMARS[index % 4],
        **settings,
    )
    return Ask(tokens(4 + 3 * index, index), params)


ASKS = [ask(temperature, index) for temperature in TEMPERATURES for index in range(8)]


@pytest.fixture(scope="module")
def expected(models: TinyModels) -> list[Result]:
    """Each alone, one token at a time, nothing cached."""
    return [run_all(make_engine(models, prefix_cache=False), [one])[0] for one in ASKS]


def matches(grammar: Grammar, text: str) -> bool:
    if grammar is CHOICE:
        return text in CHOICES
    if grammar is JSON:
        value = json.loads(text)
        return list(value) == ["a", "b"] and 0 <= value["a"] <= 99 and set(value["b"]) <= {"x", "y"}
    return re.fullmatch(PATTERN if grammar is REGEX else r"<+[ab]{8,12}>+", text) is not None


def run_replayed(models: TinyModels, asks: Seq[Ask], expected: Seq[Result]) -> list[Result]:
    """Drafts that are often right, made by a strategy that has never heard of grammars."""
    strategy = ReplayedDrafts(strategy_context(models))
    engine = make_engine(models, extra={"replayed": strategy})
    ReplayedDrafts.answers = {
        (tuple(one.prompt), one.params.seed): result.token_ids
        for one, result in zip(asks, expected, strict=True)
    }
    try:
        return run_all(engine, [replace(one, mode="replayed") for one in asks])
    finally:
        ReplayedDrafts.answers = {}


def test_every_output_that_comes_to_its_end_matches(expected: list[Result]) -> None:
    ended = [
        (one, result)
        for one, result in zip(ASKS, expected, strict=True)
        if result.finish_reason is FinishReason.STOP
    ]
    assert {one.params.grammar.kind for one, _ in ended if one.params.grammar} == set(GrammarKind)
    assert len(ended) > 15
    for one, result in ended:
        assert one.params.grammar is not None
        assert matches(one.params.grammar, result.text), result.text


@pytest.mark.parametrize("name", ["cache", "chunks", "pre-emption"])
def test_drafting_changes_no_token_within_a_grammar(
    models: TinyModels, expected: list[Result], name: str
) -> None:
    """In a mixed batch: `ar`, `deer` with its planner, `deer` with fixed lengths."""
    changes: dict[str, dict[str, Any]] = {
        "cache": {},
        "chunks": {"max_step_tokens": 7, "min_prefill_tokens": 7},
        "pre-emption": {"num_pages": 40},
    }
    ways = [("deer", 5), ("deer", None), ("ar", None), ("deer", 2)]
    asks = [
        replace(one, mode=ways[i % 5 % 4][0], draft_length=ways[i % 5 % 4][1])
        for i, one in enumerate(ASKS)
    ]
    engine = make_engine(models, **changes[name])
    results = run_all(engine, asks)
    same(results, expected)
    assert (batcher_of(engine).stats.num_preemptions > 0) == (name == "pre-emption")
    accepted, refused = count_drafts(results)
    assert accepted >= 10 and refused >= 10, "the test proves nothing"
    check_nothing_leaked(engine)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_drafts_that_nobody_cut_at_the_grammar_change_nothing_either(
    models: TinyModels, expected: list[Result], temperature: float
) -> None:
    chosen = [i for i, one in enumerate(ASKS) if one.params.temperature == temperature]
    references = [expected[i] for i in chosen]
    results = run_replayed(models, [ASKS[i] for i in chosen], references)
    same(results, references)
    accepted, refused = count_drafts(results)
    assert accepted >= 10 and refused >= 10, "the test proves nothing"


def test_a_replay_goes_on_where_it_stopped_in_the_grammar(
    models: TinyModels, expected: list[Result]
) -> None:
    for index in (0, 9, 18, 23):
        whole = expected[index].token_ids
        engine = make_engine(models)
        cuts = range(1, len(whole))
        asks = [replace(ASKS[index], mode="deer", replay=whole[:cut]) for cut in cuts]
        for cut, result in zip(cuts, run_all(engine, asks), strict=True):
            assert whole[:cut] + result.token_ids == whole
            assert result.finish_reason is expected[index].finish_reason


def test_a_draft_is_cut_where_the_grammar_refuses_it(models: TinyModels) -> None:
    engine = make_engine(models)
    params = SamplingParams(grammar=CHOICE, ignore_eos=True)
    sequence = engine.make_sequence("s", [1], params)
    hello, other = models.tokenizer.encode("hello wor"), models.tokenizer.encode("x")
    assert sequence.legal_prefix([*hello, *other, *hello]) == hello
    assert engine.make_sequence("s", [1], SamplingParams()).legal_prefix(other) == other


def test_a_draft_under_the_rejection_rule_keeps_its_length(models: TinyModels) -> None:
    """Where it ends must not hang on what was drawn."""
    params = SamplingParams(grammar=CHOICE)
    options = GenerationOptions(acceptance=Acceptance.REJECTION)
    grammar = GrammarCompiler(models.tokenizer).matcher(CHOICE)
    sequence = Sequence(
        "s",
        [1],
        params,
        models.tokenizer,
        max_model_len=64,
        mode="deer",
        options=options,
        grammar=grammar,
    )
    assert sequence.legal_prefix([1, 2, 3]) == [1, 2, 3]


@pytest.mark.parametrize("mode", ["ar", "deer"])
def test_an_output_that_the_client_foretold_is_a_draft_like_any(
    models: TinyModels, mode: str
) -> None:
    params = SamplingParams(grammar=CHOICE, temperature=0.7, seed=4)
    plain = Ask(tokens(5, 2), params)
    expected = run_all(make_engine(models), [plain])
    for foretold in ("goodbye to all of you", "hello world, and more", "nothing of the kind"):
        options = GenerationOptions(prediction=tuple(models.tokenizer.encode(foretold)))
        results = run_all(make_engine(models), [replace(plain, mode=mode, options=options)])
        same(results, expected)


def test_a_drafter_drafts_within_the_grammar(models: TinyModels) -> None:
    """Where one token alone is allowed, every draft of it stands, whatever the drafter thinks."""
    params = SamplingParams(
        temperature=1.0, max_tokens=40, grammar=Grammar(GrammarKind.REGEX, "a{30}b")
    )
    for pair in (models, with_markov_head(models)):
        one = Ask(tokens(6, 1), params, mode="deer", draft_length=4)
        beside = replace(one, params=SamplingParams(seed=2, max_tokens=9, ignore_eos=True))
        engine = make_engine(pair)
        result, other = run_all(engine, [one, beside])
        assert result.text == 30 * "a" + "b"
        accepted, refused = count_drafts([result])
        assert accepted >= 22 and refused == 0
        same([other], run_all(make_engine(pair), [replace(beside, mode="ar", draft_length=None)]))


class _Canvas(Autoregressive):
    """Stands for a way of generating that draws no token in verifier rows."""

    keeps_grammars = False


def test_a_mode_that_cannot_keep_to_a_grammar_says_so(models: TinyModels) -> None:
    engine = make_engine(models, extra={"canvas": _Canvas(strategy_context(models))})
    engine.make_sequence("s", [1], SamplingParams(), mode="canvas")
    params = SamplingParams(grammar=Grammar(GrammarKind.JSON, "{}", "response_format"))
    with pytest.raises(InvalidRequestError, match="'canvas' cannot keep") as caught:
        engine.make_sequence("s", [1], params, mode="canvas")
    assert caught.value.param == "response_format"


def test_a_batch_without_grammars_is_not_touched(models: TinyModels) -> None:
    plain = [replace(one, params=replace(one.params, grammar=None)) for one in ASKS[8:16]]
    alone = run_all(make_engine(models), plain)
    mixed = run_all(make_engine(models, max_batch_size=16), [*plain, *ASKS[8:16]])
    same(mixed[:8], alone)
    assert not needs_processing(plain[0].params)


def test_the_shipped_models_write_what_they_are_told_to() -> None:
    engine = build_engine(EngineConfig(self_test=False))
    prompt = engine.tokenizer.apply_chat_template([{"role": "user", "content": "Who are you?"}])
    asks = []
    for index, grammar in enumerate(GRAMMARS):
        params = SamplingParams(seed=index, max_tokens=48, grammar=grammar)
        asks += [
            Ask(prompt, replace(params, temperature=temperature)) for temperature in TEMPERATURES
        ]
    expected = run_all(engine, asks)
    for length in (3, 7):
        drafted = [replace(one, mode="deer", draft_length=length) for one in asks]
        same(run_all(engine, drafted), expected)
    ended = 0
    for one, result in zip(asks, expected, strict=True):
        assert one.params.grammar is not None
        if result.finish_reason is FinishReason.STOP:
            ended += 1
            assert matches(one.params.grammar, result.text), result.text
    assert ended >= 9
    check_nothing_leaked(engine)
