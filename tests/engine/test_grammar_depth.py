"""Definitions as deep and as long as they may be: compiled or refused, and the process goes on."""

from __future__ import annotations

import json

import pytest

from engine.request.errors import InvalidRequestError
from engine.request.grammar import MAX_PATTERN_LENGTH, Grammar, GrammarKind
from engine.request.grammar_compiler import GrammarCompiler
from engine.request.tokenizer import Tokenizer
from tests.engine.tiny_tokenizers import make_byte_level


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    return GrammarCompiler(Tokenizer(make_byte_level(tmp_path_factory.mktemp("tokenizer"))))


def chain_of_references(length: int) -> str:
    links = {f"{i}": {"anyOf": [{"$ref": f"#/$defs/{i + 1}"}]} for i in range(length)}
    schema = {"$ref": "#/$defs/0", "$defs": links | {f"{length}": {"type": "string"}}}
    return json.dumps(schema, separators=(",", ":"))


def test_a_long_chain_of_references_overflows_no_stack(compiler: GrammarCompiler) -> None:
    """On an ordinary stack it ends the process, and with it all that the process was doing."""
    matcher = compiler.matcher(Grammar(GrammarKind.JSON, chain_of_references(3000)))
    assert any(matcher.mask())
    matcher._renew()
    assert any(matcher.mask())


@pytest.mark.parametrize("kind", [GrammarKind.REGEX, GrammarKind.GRAMMAR])
def test_patterns_and_rules_are_shorter_than_schemas(kind: GrammarKind) -> None:
    with pytest.raises(InvalidRequestError, match="at most 16384") as refused:
        Grammar(kind, "a" * (MAX_PATTERN_LENGTH + 1), "the_field")
    assert refused.value.param == "the_field"


@pytest.mark.parametrize("keyword", ["pattern", "patternProperties"])
def test_all_patterns_of_a_schema_together_are_as_short(
    compiler: GrammarCompiler, keyword: str
) -> None:
    half = "a?" * (MAX_PATTERN_LENGTH // 4 + 1)
    parts = {name: {"pattern": half + name} for name in "bc"}
    if keyword == "patternProperties":
        parts = {name: {keyword: {half + name: {}}} for name in "bc"}
    definition = json.dumps({"type": "object", "properties": parts})
    with pytest.raises(InvalidRequestError, match="patterns have more than 16384") as refused:
        compiler.matcher(Grammar(GrammarKind.JSON, definition, "the_field"))
    assert refused.value.param == "the_field"
