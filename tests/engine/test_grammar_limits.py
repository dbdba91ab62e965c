"""Definitions that cannot be used, or cost too much: refused by name, given up, or forgotten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.request import grammar_compiler
from engine.request.errors import InvalidRequestError
from engine.request.grammar import MAX_DEFINITION_LENGTH, Grammar, GrammarKind
from engine.request.grammar_compiler import MAX_COMPILED, GrammarCompiler
from engine.request.tokenizer import Tokenizer
from tests.engine.test_grammar import REGEX, spell
from tests.engine.tiny_tokenizers import make_byte_level


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(make_byte_level(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer)


BAD = [
    (GrammarKind.JSON, "{", "Expecting"),
    (GrammarKind.JSON, '{"type":"shoe"}', "Invalid type: shoe"),
    (GrammarKind.JSON, "5", "object or boolean"),
    (GrammarKind.JSON, "false", "Unsatisfiable"),
    (GrammarKind.JSON, '{"not":{}}', 'keys: \\["not"\\]'),
    (GrammarKind.JSON, '{"$ref":"http://example.com/x"}', "Resource"),
    (
        GrammarKind.JSON,
        '{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/a"}}}',
        "nothing that matches",
    ),
    (GrammarKind.JSON, '{"a":' * 5000 + "1" + "}" * 5000, "recursion"),
    (GrammarKind.JSON, '{"type":"string","pattern":"(?=a)"}', "look-around"),
    (GrammarKind.REGEX, "(", "unclosed group"),
    (GrammarKind.REGEX, r"(a)\1", "backreferences"),
    (GrammarKind.REGEX, "(?=a)", "look-ahead"),
    (GrammarKind.CHOICE, "5", "list of strings"),
    (GrammarKind.CHOICE, "[]", "list of strings"),
    (GrammarKind.CHOICE, '["a", ""]', "not empty"),
    (GrammarKind.GRAMMAR, "start: foo", 'unknown name: "foo"'),
    (GrammarKind.GRAMMAR, "root ::= (", "GBNF"),
]


@pytest.mark.parametrize(("kind", "definition", "words"), BAD)
def test_a_definition_that_cannot_be_used_is_refused_by_its_field(
    compiler: GrammarCompiler, kind: GrammarKind, definition: str, words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        compiler.matcher(Grammar(kind, definition, "the_field"))
    assert caught.value.param == "the_field"
    assert len(caught.value.message) < 400 and "\n" not in caught.value.message


@pytest.mark.parametrize(
    "definition", ['start: a a a a\na: a a | a "x" | "x"', "start: /(.{0,5000}){0,5000}/"]
)
def test_a_prefix_that_is_too_tangled_is_a_dead_end_with_a_draft_and_without(
    tokenizer: Tokenizer, definition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_compiler, "MAX_READINGS_OF_GRAMMAR", 100)
    compiler = GrammarCompiler(tokenizer)
    tangled = Grammar(GrammarKind.GRAMMAR, definition)
    (letter,) = spell(tokenizer, "x")
    plain, drafted = compiler.matcher(tangled), compiler.matcher(tangled)
    length = 0
    while plain.masks()[0] and plain.accept(letter):
        length += 1
    assert 5 < length < 100, "the test proves nothing"
    assert not plain.accept(letter)
    draft = [letter] * (length + 5)
    assert sum(map(bool, drafted.masks(draft))) >= length
    assert len(drafted.legal_prefix(draft)) >= length
    assert all(drafted.accept(letter) for _ in range(length)), "its output is not there yet"
    assert drafted.masks() == plain.masks()
    assert not drafted.accept(letter)


def test_a_definition_of_any_size_is_not_even_tried() -> None:
    with pytest.raises(InvalidRequestError, match="characters") as caught:
        Grammar(GrammarKind.REGEX, "a" * (MAX_DEFINITION_LENGTH + 1), "guided_regex")
    assert caught.value.param == "guided_regex"


def test_more_than_can_be_followed_is_refused_at_once(compiler: GrammarCompiler) -> None:
    properties = {f"k{i}": {"type": "integer"} for i in range(600)}
    schema = {"type": "object", "properties": properties}
    with pytest.raises(InvalidRequestError, match="tangled"):
        compiler.matcher(Grammar(GrammarKind.JSON, json.dumps(schema)))
    schema["required"] = list(properties)
    compiler.matcher(Grammar(GrammarKind.JSON, json.dumps(schema)))


def tangled() -> str:
    """A small schema whose combinations are far too many."""
    parts = [
        {"anyOf": [{"type": "object", "properties": {f"k{i}{j}": {}}} for i in range(4)]}
        for j in range(8)
    ]
    return json.dumps({"allOf": parts})


def test_a_tangled_definition_is_given_up(compiler: GrammarCompiler) -> None:
    with pytest.raises(InvalidRequestError):
        compiler.matcher(Grammar(GrammarKind.JSON, tangled(), "response_format"))


def test_a_compiled_grammar_is_kept_and_each_sequence_has_its_own_place_in_it(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    compiler = GrammarCompiler(tokenizer)
    first = compiler.matcher(REGEX)
    assert first.accept(spell(tokenizer, "a")[0])
    second = compiler.matcher(Grammar(REGEX.kind, REGEX.definition, "elsewhere"))
    assert second.masks() != first.masks()
    assert len(compiler._compiled) == 1
    for number in range(MAX_COMPILED):
        compiler.matcher(Grammar(GrammarKind.REGEX, f"a{number}"))
        compiler.matcher(REGEX)
    assert len(compiler._compiled) == MAX_COMPILED
    assert REGEX in compiler._compiled, "what is asked for often stays"


def test_a_choice_may_be_one_of_thousands(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    names = [f"{number} of many" for number in range(4096)]
    matcher = compiler.matcher(Grammar(GrammarKind.CHOICE, json.dumps(names)))
    assert all(matcher.accept(token_id) for token_id in spell(tokenizer, "4095 of many"))
    assert matcher.is_complete
