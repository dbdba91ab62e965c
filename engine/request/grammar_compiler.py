"""Grammars made ready for a vocabulary by llguidance, and kept for the next who asks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from functools import partial
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from, regex_to_lark

from engine.base import BaseCache
from engine.request.errors import InvalidRequestError
from engine.request.grammar import MAX_PATTERN_LENGTH, Grammar, GrammarKind
from engine.request.grammar_matcher import GrammarMatcher
from engine.request.large_stack import on_large_stack
from engine.request.tokenizer import Tokenizer

MAX_COMPILED = 64
MAX_READINGS = 2000
"""Of what was said so far, kept at a time; 500 optional properties of one object have as many."""
MAX_READINGS_OF_GRAMMAR = 500
"""Only what clients write as rules can be ambiguous, and then every token takes long."""

# Forced text could be written by its canonical tokens alone, but then a mask would hang on more
# than the output's bytes, and would need the tokenizer, which the engine's thread must not share.
_NO_FORCING = '\n%llguidance {"no_forcing": true}\n'

# Space for the eye, but no endless one, in which a weak model could spend all its tokens.
_JSON_OPTIONS = {"whitespace_pattern": r"( |\n {0,16}|\n\t{0,8})?"}

_PLACE = re.compile(r"^at \d+\(\d+\): |failed to compile JSON schema: ")
_REASON = re.compile(r"^error: (.*)", re.MULTILINE)


class GrammarCompiler:
    """Turns grammars into matchers over one model's vocabulary; for one thread at a time."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int = 0) -> None:
        """`vocab_size` is the model's, which may have more ids than the tokenizer has tokens."""
        vocabulary = _Vocabulary(tokenizer, max(vocab_size, tokenizer.vocab_size))
        # A wrapper of tokens is all that it asks for at run time, whatever its types say.
        wrapper: Any = vocabulary
        self._vocabulary = LLTokenizer(wrapper, eos_token=vocabulary.eos_token_ids)
        self._eos_token_ids = vocabulary.eos_token_ids
        self._compiled = BaseCache[Grammar, _Compiled](MAX_COMPILED)

    def matcher(self, grammar: Grammar, *, ignore_eos: bool = False) -> GrammarMatcher:
        """A matcher at its start; raises `InvalidRequestError` naming the grammar's field."""
        compiled = self._compiled.get(grammar)
        if compiled is None:
            compiled = self._compile(grammar)
            self._compiled.put(grammar, compiled)
        return GrammarMatcher(compiled, self._eos_token_ids if ignore_eos else ())

    def _compile(self, grammar: Grammar) -> _Compiled:
        try:
            lark = _to_lark(grammar) + _NO_FORCING
        except (ValueError, RecursionError) as error:
            raise _refused(grammar, str(error)) from error
        compiled = _Compiled(self._vocabulary, lark, _limits(grammar.kind))
        if compiled.error:
            raise _refused(grammar, compiled.error)
        if not _can_begin(compiled.start()):
            raise _refused(grammar, "nothing that matches it can be said, or it is too tangled")
        return compiled


class _Compiled:
    """A grammar and the matcher that those of all sequences are copied from.

    Copies share the lexer, with the states that it has met so far and a limit to their number.
    """

    def __init__(self, vocabulary: LLTokenizer, lark: str, limits: LLParserLimits) -> None:
        self._make = partial(LLMatcher, vocabulary, lark, log_level=0, limits=limits)
        self._original = on_large_stack(self._make)
        self.error = self._original.get_error()

    def start(self) -> LLMatcher:
        return self._original.deep_copy()

    def start_anew(self) -> LLMatcher:
        self._original = on_large_stack(self._make)
        return self.start()


def _limits(kind: GrammarKind) -> LLParserLimits:
    """Deep or tangled definitions must not hold up the others of a batch.

    With these limits the worst that was found took 0.4 s to compile, once, and 0.02 s for a mask.
    """
    is_free = kind is GrammarKind.GRAMMAR
    return LLParserLimits(
        max_grammar_size=30_000,
        max_items_in_row=MAX_READINGS_OF_GRAMMAR if is_free else MAX_READINGS,
        step_max_items=10_000,
        verbose_errors=False,
    )


def _can_begin(trial: LLMatcher) -> bool:
    mask = trial.compute_bitmask()
    allowed = (8 * place + byte.bit_length() - 1 for place, byte in enumerate(mask) if byte)
    first = next(allowed, None)
    return first is not None and trial.try_consume_tokens([first]) == 1 and not trial.is_error()


class _Vocabulary:
    """What llguidance asks of a tokenizer: the bytes that our text stream will see."""

    is_tokenizer_wrapper = True  # how llguidance knows one
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(size)]
        if not tokenizer.eos_token_ids:
            self.tokens.append(b"<eos>")  # of no model; such a grammar ends where nothing follows
        self.eos_token_ids = sorted(tokenizer.eos_token_ids) or [size]
        self.eos_token_id = self.eos_token_ids[0]
        is_special = {
            token_id
            for token_id in range(size)
            if self.tokens[token_id] and not tokenizer.is_text(token_id)
        }
        self.special_token_ids = sorted(is_special | set(self.eos_token_ids))

    def __call__(self, text: str) -> Seq[int]:
        raise NotImplementedError("nothing is forced, so no text needs to be tokenized")


def _to_lark(grammar: Grammar) -> str:
    match grammar.kind:
        case GrammarKind.JSON:
            return f"start: %json {_json_schema(grammar.definition)}"
        case GrammarKind.REGEX:
            # "d": a digit is 0 to 9, as whoever writes \d means, and not those of every script.
            return f"start: /{regex_to_lark(grammar.definition, 'd')}/"
        case GrammarKind.CHOICE:
            # A terminal: rules would be as many readings at once, of which there is a limit.
            choices = map(json.dumps, _choices(grammar.definition))
            return f"start: CHOICE\nCHOICE: {' | '.join(choices)}"
        case GrammarKind.GRAMMAR:
            return grammar_from("grammar", grammar.definition)


def _choices(definition: str) -> list[str]:
    choices = json.loads(definition)
    if not isinstance(choices, list) or not choices:
        raise ValueError("it must be a list of strings")
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise ValueError("every choice must be a string that is not empty")
    return choices


def _json_schema(definition: str) -> str:
    """The schema with our own options in place of any that it brings."""
    schema = json.loads(definition)
    if _num_pattern_chars(schema) > MAX_PATTERN_LENGTH:
        raise ValueError(f"its patterns have more than {MAX_PATTERN_LENGTH} characters")
    if schema is True:
        schema = {}
    if isinstance(schema, dict):
        schema["x-guidance"] = _JSON_OPTIONS
    return json.dumps(schema)


def _num_pattern_chars(schema: object) -> int:
    total, waiting = 0, [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            waiting += part.values()
            patterns = [part.get("pattern"), *_keys(part.get("patternProperties"))]
            total += sum(len(pattern) for pattern in patterns if isinstance(pattern, str))
    return total


def _keys(value: object) -> Iterable[object]:
    return value if isinstance(value, dict) else ()


def _refused(grammar: Grammar, error: str) -> InvalidRequestError:
    reason = _REASON.search(error)
    first_line = error.strip().partition("\n")[0]
    text = reason[1] if reason else _PLACE.sub("", first_line)
    if text.startswith("panic"):
        text = "it is too large"
    return InvalidRequestError(f"{grammar.param} cannot be used: {text[:300]}", grammar.param)
