"""Grammars over a vocabulary: what they let through, what they refuse, and where they end."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator

import pytest

from engine.build import EMBEDDED
from engine.request.grammar import Grammar, GrammarKind
from engine.request.grammar_compiler import GrammarCompiler
from engine.request.grammar_matcher import GrammarMatcher
from engine.request.tokenizer import Tokenizer
from tests.engine.tiny_tokenizers import make_byte_level, make_metaspace

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 999},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
PERSON = Grammar(GrammarKind.JSON, json.dumps(SCHEMA), "response_format")
CHOICES = ["hello", 'say "no"', "a\nb", "hell", "caf\u00e9 \u4e16 \U0001f600", "a/b\\c"]
CHOICE = Grammar(GrammarKind.CHOICE, json.dumps(CHOICES), "guided_choice")
PATTERN = r"^(hello|[a-f]{2,4}) \d{1,3}/\d\.?$"
REGEX = Grammar(GrammarKind.REGEX, PATTERN, "guided_regex")
GBNF = Grammar(GrammarKind.GRAMMAR, 'root ::= "<" body ">"\nbody ::= [a-z]{0,3} | "<" body ">"\n')
LARK = Grammar(GrammarKind.GRAMMAR, 'start: "a" start "b" | "-"\n')
ALL = (PERSON, CHOICE, REGEX, GBNF, LARK)


@pytest.fixture(scope="module", params=["shipped", "byte level", "metaspace"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    if request.param == "shipped":
        return Tokenizer(EMBEDDED / "verifier")
    make = make_byte_level if request.param == "byte level" else make_metaspace
    return Tokenizer(make(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer)


def allowed(mask: bytes) -> list[int]:
    return [i for i in range(8 * len(mask)) if mask[i // 8] >> i % 8 & 1]


def spell(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens that say the text in the middle of another, one byte at a time where need be."""
    of_bytes = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    return [of_bytes[bytes([byte])] for byte in text.encode()]


def wander(
    tokenizer: Tokenizer, matcher: GrammarMatcher, seed: int, limit: int = 60
) -> Iterator[int]:
    """Advance by tokens taken at random from the masks; yield each."""
    chooser = random.Random(seed)
    for _ in range(limit):
        candidates = allowed(matcher.masks()[0])
        token_id = chooser.choice(candidates)
        assert matcher.accept(token_id)
        yield token_id
        if matcher.is_complete:
            return


def texts(tokenizer: Tokenizer, compiler: GrammarCompiler, grammar: Grammar) -> list[str]:
    """What comes of random tokens that the masks allow, where the grammar came to its end."""
    found = []
    for seed in range(40):
        matcher = compiler.matcher(grammar)
        output = list(wander(tokenizer, matcher, seed))
        if matcher.is_complete:
            text = b"".join(tokenizer.token_bytes(i) for i in output if tokenizer.is_text(i))
            found.append(text.decode())
    assert len(found) > 5, "the test proves nothing: hardly an output came to its end"
    return found


def test_whatever_the_masks_allow_keeps_to_the_schema(
    tokenizer: Tokenizer, compiler: GrammarCompiler
) -> None:
    for text in texts(tokenizer, compiler, PERSON):
        person = json.loads(text)
        assert list(person) == ["name", "age", "tags"]
        assert len(person["name"]) <= 6
        assert isinstance(person["age"], int) and 0 <= person["age"] <= 999
        assert len(person["tags"]) <= 3 and set(person["tags"]) <= {"a", "b"}


def test_whatever_the_masks_allow_matches_the_whole_pattern(
    tokenizer: Tokenizer, compiler: GrammarCompiler
) -> None:
    for text in texts(tokenizer, compiler, REGEX):
        assert re.fullmatch(PATTERN, text)


def test_whatever_the_masks_allow_is_one_of_the_choices(
    tokenizer: Tokenizer, compiler: GrammarCompiler
) -> None:
    found = set(texts(tokenizer, compiler, CHOICE))
    assert found <= set(CHOICES)
    assert len(found) >= 4


def test_whatever_the_masks_allow_is_derived_from_the_grammar(
    tokenizer: Tokenizer, compiler: GrammarCompiler
) -> None:
    for text in texts(tokenizer, compiler, GBNF):
        assert re.fullmatch(r"<+[a-z]{0,3}>+", text)
        assert text.count("<") == text.count(">")
    for text in texts(tokenizer, compiler, LARK):
        assert re.fullmatch(r"a*-b*", text) and text.count("a") == text.count("b")


def test_every_choice_can_be_said(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    for choice in CHOICES:
        matcher = compiler.matcher(CHOICE)
        assert all(map(matcher.accept, spell(tokenizer, choice))), choice
        assert matcher.is_satisfied
        assert matcher.is_complete == (choice != "hell"), "'hello' begins like 'hell'"


@pytest.mark.parametrize(
    "text",
    ['{"name":"x","age":1,"tags":[]}', '{\n  "name": "x",\n  "age": 1,\n  "tags": [ "a" ]\n}'],
)
def test_json_may_be_laid_out_or_not(
    tokenizer: Tokenizer, compiler: GrammarCompiler, text: str
) -> None:
    matcher = compiler.matcher(PERSON)
    assert all(map(matcher.accept, spell(tokenizer, text)))
    assert matcher.is_complete


def test_json_never_waits_for_ever_between_two_words(
    tokenizer: Tokenizer, compiler: GrammarCompiler
) -> None:
    matcher = compiler.matcher(PERSON)
    (newline,), (blank,) = spell(tokenizer, "\n"), spell(tokenizer, " ")
    draft = [*spell(tokenizer, "{"), newline, *[blank] * 100]
    assert len(matcher.legal_prefix(draft)) < 30


@pytest.mark.parametrize("grammar", ALL, ids=lambda grammar: grammar.param)
def test_looking_along_a_draft_changes_nothing(
    tokenizer: Tokenizer, compiler: GrammarCompiler, grammar: Grammar
) -> None:
    """Masks along a draft are those of a matcher that was led there by output alone."""
    chooser = random.Random(0)
    for seed in range(6):
        path = list(wander(tokenizer, compiler.matcher(grammar), seed, limit=16))
        drafted, plain = compiler.matcher(grammar), compiler.matcher(grammar)
        for place, token_id in enumerate(path):
            draft = path[place:]
            masks = drafted.masks(draft)
            other = [*draft[:2], chooser.randrange(tokenizer.vocab_size), *draft[:2]]
            assert drafted.masks(other)[:2] == masks[:2]
            assert drafted.legal_prefix(draft) == draft
            assert masks[0] == plain.masks()[0]
            assert len(masks) in (len(draft), len(draft) + 1)
            assert token_id in allowed(masks[0])
            for further, mask in zip(draft[:4], masks, strict=False):
                assert further in allowed(mask)
            assert drafted.accept(token_id) and plain.accept(token_id)
        assert drafted.is_complete == plain.is_complete


def test_a_draft_is_legal_up_to_the_first_token_that_is_refused(
    tokenizer: Tokenizer, compiler: GrammarCompiler
) -> None:
    matcher = compiler.matcher(REGEX)
    assert all(map(matcher.accept, spell(tokenizer, "ab")))
    good, bad = spell(tokenizer, "cd 1"), spell(tokenizer, "x")
    assert matcher.legal_prefix([*good, *bad, *good]) == good
    assert matcher.legal_prefix(bad) == []
    assert matcher.legal_prefix(spell(tokenizer, " 12/3.") + good) == spell(tokenizer, " 12/3.")
    assert len(matcher.masks([*good, *bad, *good])) == len(good) + 1


def test_a_refused_token_leaves_the_matcher_as_it_was(
    tokenizer: Tokenizer, compiler: GrammarCompiler
) -> None:
    matcher = compiler.matcher(REGEX)
    before = matcher.masks()
    assert not matcher.accept(spell(tokenizer, "x")[0])
    assert not matcher.accept(min(tokenizer.eos_token_ids)), "nothing has been said yet"
    assert matcher.masks() == before


def test_every_end_of_sequence_is_allowed_where_the_grammar_may_end(
    tokenizer: Tokenizer, compiler: GrammarCompiler
) -> None:
    eos = tokenizer.eos_token_ids
    matcher = compiler.matcher(CHOICE)
    assert not eos & set(allowed(matcher.masks()[0]))
    assert all(map(matcher.accept, spell(tokenizer, "hell")))
    assert eos < set(allowed(matcher.masks()[0]))
    assert matcher.legal_prefix([min(eos), *spell(tokenizer, "o")]) == [min(eos)]
    assert matcher.accept(min(eos)) and matcher.is_complete


def test_an_end_that_is_ignored_is_hidden_while_anything_else_can_follow(
    tokenizer: Tokenizer, compiler: GrammarCompiler
) -> None:
    matcher = compiler.matcher(CHOICE, ignore_eos=True)
    assert all(map(matcher.accept, spell(tokenizer, "hell")))
    rest = allowed(matcher.masks()[0])
    assert rest and not tokenizer.eos_token_ids & set(rest)
    empty = compiler.matcher(Grammar(GrammarKind.REGEX, "(a{0})"), ignore_eos=True)
    assert set(allowed(empty.masks()[0])) == tokenizer.eos_token_ids


def test_special_tokens_are_no_text(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    anything = compiler.matcher(Grammar(GrammarKind.REGEX, r"(?s:.*)"))
    for token_id in allowed(anything.masks()[0]):
        assert tokenizer.is_text(token_id) or token_id in tokenizer.eos_token_ids


def test_ids_without_a_token_are_refused_and_do_no_harm(tokenizer: Tokenizer) -> None:
    """A model's vocabulary may be padded, and a drafter may draft what the tokenizer lacks."""
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size + 100)
    matcher = compiler.matcher(REGEX)
    beyond = tokenizer.vocab_size + 50
    assert not matcher.try_advance(beyond) and not matcher.accept(beyond)
    assert matcher.legal_prefix([*spell(tokenizer, "ab"), beyond]) == spell(tokenizer, "ab")
    anything = compiler.matcher(Grammar(GrammarKind.REGEX, r"(?s:.*)"))
    assert max(allowed(anything.masks([beyond])[0])) < tokenizer.vocab_size
    assert all(map(matcher.accept, spell(tokenizer, "ab"))), "and it still knows its way"
