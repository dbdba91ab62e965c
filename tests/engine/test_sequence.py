"""What is committed to a sequence: ends, text, replays and counts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.request.outputs import FinishReason, TokenLogprobs
from engine.request.sampling_params import SamplingParams
from engine.request.sequence import Sequence
from engine.request.tokenizer import Tokenizer
from tests.engine.engines import Result
from tests.engine.tiny_tokenizers import make_byte_level

PROMPT = [1, 2, 3]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(make_byte_level(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def eos(tokenizer: Tokenizer) -> int:
    (token_id,) = tokenizer.eos_token_ids
    return token_id


def make(tokenizer: Tokenizer, *, max_model_len: int = 100, **params: Any) -> Sequence:
    return Sequence(
        "s",
        PROMPT,
        SamplingParams(**params),
        tokenizer,
        max_model_len=max_model_len,
        mode="ar",
    )


def one_by_one(sequence: Sequence, token_ids: list[int]) -> Result:
    """Commit a token a step until the end."""
    result = Result()
    for token_id in token_ids:
        if sequence.is_finished:
            break
        sequence.commit([token_id])
        output = sequence.take_output()
        if output is not None:
            result.take(output)
    return result


def test_eos_ends_a_sequence_and_adds_no_text(tokenizer: Tokenizer, eos: int) -> None:
    sequence = make(tokenizer)
    assert sequence.commit([*tokenizer.encode("hello"), eos]) == 2
    output = sequence.take_output()
    assert output is not None
    assert (output.text, output.finish_reason) == ("hello", FinishReason.STOP)
    assert output.token_ids[-1] == eos


def test_tokens_after_the_end_are_dropped(tokenizer: Tokenizer, eos: int) -> None:
    sequence = make(tokenizer)
    hello = tokenizer.encode("hello")
    assert sequence.commit([*hello, eos, *hello, *hello]) == len(hello) + 1
    assert sequence.output_token_ids == [*hello, eos]
    assert sequence.commit(hello) == 0


def test_an_ignored_eos_ends_nothing(tokenizer: Tokenizer, eos: int) -> None:
    sequence = make(tokenizer, ignore_eos=True, max_tokens=3)
    result = one_by_one(sequence, [eos, *tokenizer.encode("hello"), eos])
    assert (result.text, result.finish_reason) == ("hello", FinishReason.LENGTH)


def test_a_stop_token_ends_and_adds_no_text_even_where_eos_is_ignored(
    tokenizer: Tokenizer,
) -> None:
    (stop,) = tokenizer.encode("hello")
    sequence = make(tokenizer, stop_token_ids=(stop,), ignore_eos=True)
    result = one_by_one(sequence, [*tokenizer.encode("ab"), stop])
    assert (result.text, result.finish_reason) == ("ab", FinishReason.STOP)
    assert result.token_ids[-1] == stop


def test_a_stop_string_is_found_over_token_borders_and_never_shown(tokenizer: Tokenizer) -> None:
    sequence = make(tokenizer, stop=("xyz",))
    result = one_by_one(sequence, tokenizer.encode("abxyxyzcd"))
    assert (result.text, result.finish_reason) == ("abxy", FinishReason.STOP)
    assert tokenizer.decode(result.token_ids) == "abxyxyz"


def test_text_that_may_become_a_stop_string_is_held_back_and_let_out_at_the_end(
    tokenizer: Tokenizer,
) -> None:
    sequence = make(tokenizer, stop=("xyz",), max_tokens=4)
    texts = []
    for token_id in tokenizer.encode("abxy"):
        sequence.commit([token_id])
        output = sequence.take_output()
        assert output is not None
        texts.append(output.text)
    assert texts == ["a", "b", "", "xy"]
    assert sequence.finish_reason is FinishReason.LENGTH


def test_text_before_eos_that_was_held_back_is_let_out(tokenizer: Tokenizer, eos: int) -> None:
    result = one_by_one(make(tokenizer, stop=("xyz",)), [*tokenizer.encode("axy"), eos])
    assert result.text == "axy"


@pytest.mark.parametrize("max_tokens", [1, 2, 5])
def test_max_tokens_ends_a_sequence_at_that_token(tokenizer: Tokenizer, max_tokens: int) -> None:
    sequence = make(tokenizer, max_tokens=max_tokens)
    assert sequence.commit(tokenizer.encode("abcdefgh")) == max_tokens
    assert sequence.finish_reason is FinishReason.LENGTH


def test_max_tokens_zero_gives_no_token(tokenizer: Tokenizer) -> None:
    sequence = make(tokenizer, max_tokens=0)
    assert not sequence.is_finished, "the prompt still has to be read"
    assert sequence.commit([5]) == 0
    output = sequence.take_output()
    assert output is not None
    assert (output.token_ids, output.text) == ((), "")
    assert output.finish_reason is FinishReason.LENGTH
    assert output.summary is not None
    assert output.summary.num_output_tokens == 0


def test_the_end_of_the_context_ends_a_sequence(tokenizer: Tokenizer) -> None:
    sequence = make(tokenizer, max_model_len=len(PROMPT) + 2)
    assert sequence.commit(tokenizer.encode("abcd")) == 2
    assert sequence.finish_reason is FinishReason.LENGTH


def test_nothing_ends_a_sequence_within_min_tokens(tokenizer: Tokenizer, eos: int) -> None:
    sequence = make(tokenizer, min_tokens=4, stop=("b",), stop_token_ids=(7,))
    result = one_by_one(sequence, [eos, *tokenizer.encode("b"), 7, eos, eos])
    assert len(result.token_ids) == 5, "the first token that may end is the fifth"
    assert result.finish_reason is FinishReason.STOP
    assert "b" in result.text


def test_an_unfinished_character_becomes_one_replacement_at_the_end(tokenizer: Tokenizer) -> None:
    first_byte = tokenizer.encode("世")[0]
    sequence = make(tokenizer, max_tokens=2)
    result = one_by_one(sequence, [*tokenizer.encode("a"), first_byte])
    assert result.text == "a\ufffd"


def test_a_step_that_commits_nothing_gives_no_output(tokenizer: Tokenizer) -> None:
    sequence = make(tokenizer)
    assert sequence.commit([]) == 0
    assert sequence.take_output() is None


def test_a_token_inside_a_character_is_reported_with_no_text(tokenizer: Tokenizer) -> None:
    sequence = make(tokenizer)
    sequence.commit(tokenizer.encode("世")[:1])
    output = sequence.take_output()
    assert output is not None
    assert (len(output.token_ids), output.text) == (1, "")


def test_logprobs_go_only_with_the_tokens_that_were_taken(tokenizer: Tokenizer, eos: int) -> None:
    sequence = make(tokenizer, logprobs=0)
    token_ids = [5, eos, 6, 7]
    sequence.commit(token_ids, [TokenLogprobs(token_id, b"", -1.0) for token_id in token_ids])
    output = sequence.take_output()
    assert output is not None and output.logprobs is not None
    assert [one.token_id for one in output.logprobs] == [5, eos]


STORY = "héllo wörld 世界 xyz hello xxyxyz"


def story_tokens(tokenizer: Tokenizer, eos: int) -> list[int]:
    return [*tokenizer.encode(STORY), eos]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"stop": ("xyz hello",)},
        {"stop": ("xxyxyz!", "世界x")},
        {"stop": ("llo w", "xyz"), "min_tokens": 12},
        {"max_tokens": 17},
        {"ignore_eos": True},
    ],
    ids=str,
)
def test_a_replay_gives_the_same_text_as_an_undisturbed_run_at_every_cut(
    tokenizer: Tokenizer, eos: int, params: dict[str, Any]
) -> None:
    script = story_tokens(tokenizer, eos)
    whole = make(tokenizer, **params)
    outputs = []
    for token_id in script:
        if whole.is_finished:
            break
        whole.commit([token_id])
        outputs.append(whole.take_output())
    taken = whole.output_token_ids
    for cut in range(1, len(taken) + 1):
        before = Result()
        for output in outputs[:cut]:
            if output is not None:
                before.take(output)
        rerun = Sequence(
            "s",
            PROMPT,
            SamplingParams(**params),
            tokenizer,
            max_model_len=100,
            mode="ar",
            replay=taken[:cut],
        )
        assert rerun.is_finished == (before.finish_reason is not None)
        after = one_by_one(rerun, script[cut:])
        expected = Result()
        for output in outputs[cut:]:
            if output is not None:
                expected.take(output)
        assert after == expected, cut


def test_a_replay_past_the_end_is_cut_and_only_the_end_is_reported(
    tokenizer: Tokenizer, eos: int
) -> None:
    hello = tokenizer.encode("hello")
    sequence = Sequence(
        "s",
        PROMPT,
        SamplingParams(),
        tokenizer,
        max_model_len=100,
        mode="ar",
        replay=[*hello, eos, *hello],
    )
    assert sequence.output_token_ids == [*hello, eos]
    output = sequence.take_output()
    assert output is not None
    assert (output.token_ids, output.text) == ((), "")
    assert output.finish_reason is FinishReason.STOP


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_how_tokens_are_cut_into_steps_changes_nothing(tokenizer: Tokenizer, data: Any) -> None:
    (eos,) = tokenizer.eos_token_ids
    pieces = st.sampled_from([*range(tokenizer.vocab_size - 5), *tokenizer.encode("世界"), eos])
    script = data.draw(st.lists(pieces, max_size=25))
    params: dict[str, Any] = {
        "stop": tuple(data.draw(st.lists(st.text("aé世b", min_size=1, max_size=3), max_size=2))),
        "max_tokens": data.draw(st.integers(1, 25)),
        "min_tokens": data.draw(st.integers(0, 5)),
    }
    expected = one_by_one(make(tokenizer, **params), script)
    sequence, result, rest = make(tokenizer, **params), Result(), script
    while rest and not sequence.is_finished:
        size = data.draw(st.integers(1, 6))
        sequence.commit(rest[:size])
        rest = rest[size:]
        output = sequence.take_output()
        if output is not None:
            result.take(output)
    assert result == expected


def test_usage_counts_prompt_and_output(tokenizer: Tokenizer, eos: int) -> None:
    result = one_by_one(make(tokenizer), [*tokenizer.encode("abc"), eos])
    assert result.summary is not None
    assert result.summary.num_prompt_tokens == len(PROMPT)
    assert result.summary.num_output_tokens == 4


@settings(max_examples=50, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=20))
def test_the_acceptance_histogram_adds_up(
    tokenizer: Tokenizer, steps: list[tuple[int, int]]
) -> None:
    sequence = make(tokenizer)
    pairs = [(drafted, min(drafted, accepted)) for drafted, accepted in steps]
    for drafted, accepted in pairs:
        sequence.record_draft(drafted, accepted)
    histogram = sequence.acceptance_histogram
    assert sum(histogram) == len(pairs)
    assert sum(j * count for j, count in enumerate(histogram)) == sum(a for _, a in pairs)
    assert sequence.num_draft_tokens == sum(d for d, _ in pairs)


def test_released_pages_count_as_not_computed(tokenizer: Tokenizer) -> None:
    sequence = make(tokenizer)
    sequence.page_ids, sequence.num_computed = [4, 5], 3
    assert sequence.release_pages() == [4, 5]
    assert (sequence.page_ids, sequence.num_computed) == ([], 0)
    assert sequence.is_prefilling
