"""Texts that go on after a hole: what follows is tokenized as it stands, holes are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.request.options import GenerationOptions
from engine.request.outputs import Ending, FinishReason
from engine.request.sampling_params import SamplingParams
from engine.request.sequence import Sequence
from engine.request.text_stream import hole_texts
from engine.request.tokenizer import Tokenizer
from tests.engine.tiny_tokenizers import make_byte_level, make_metaspace


@pytest.fixture(params=[make_byte_level, make_metaspace], scope="module")
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    folder: Path = request.param(tmp_path_factory.mktemp("tokenizer"))
    return Tokenizer(folder)


@pytest.mark.parametrize("text", ["world", " world", "\nworld", "\u4e16", ""])
def test_what_follows_gets_no_space_and_no_bos_of_its_own(tokenizer: Tokenizer, text: str) -> None:
    token_ids = tokenizer.encode_continuation(text, "suffix")
    whole = [*tokenizer.encode("hello"), *token_ids]
    assert tokenizer.decode(whole) == "hello" + text


def test_each_hole_has_the_text_that_it_adds_where_it_stands(tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("a")
    holes = [tokenizer.encode_continuation(text, "x") for text in (" hello", "lo \u4e16", "")]
    suffixes = [tokenizer.encode_continuation(text, "x") for text in ("he", "a", "")]
    assert hole_texts(tokenizer, prompt, holes, suffixes) == (" hello", "lo \u4e16", "")


def test_a_character_cut_off_at_a_holes_end_does_not_flow_into_the_next(tmp_path: Path) -> None:
    tokenizer = Tokenizer(make_byte_level(tmp_path))
    first, *_, last = tokenizer.encode("\u4e16")
    assert hole_texts(tokenizer, [], [[first], [last]], [[], []]) == ("\ufffd", "\ufffd")


@pytest.mark.parametrize(
    ("num_holes", "lengths", "holes"),
    [(1, (3,), ()), (2, (1, 2), (" hello", " a a")), (2, (), ())],
)
def test_a_summary_has_the_texts_of_several_holes(
    tokenizer: Tokenizer, num_holes: int, lengths: tuple[int, ...], holes: tuple[str, ...]
) -> None:
    sequence = Sequence(
        "s",
        tokenizer.encode("a"),
        SamplingParams(max_tokens=64),
        tokenizer,
        max_model_len=128,
        mode="diffusion",
        options=GenerationOptions(suffixes=((),) * num_holes),
    )
    texts = [tokenizer.encode_continuation(text, "x") for text in (" hello", " a", " a")]
    sequence.commit([token_id for text in texts for token_id in text])
    sizes = [len(text) for text in texts]
    starts = iter(sizes)
    in_tokens = tuple(sum(next(starts) for _ in range(length)) for length in lengths)
    sequence.end(Ending(FinishReason.LENGTH, in_tokens))
    output = sequence.take_output()
    assert output is not None
    assert output.summary is not None
    assert output.summary.holes == holes
