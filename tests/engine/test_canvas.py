"""diffusion: one canvas in any order, equal to plain loops, whatever interrupts it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.generation import diffusion_reader, forwards
from engine.generation.forwards import denoise_pick
from engine.generation.strategy import Rows
from engine.models.diffusion_lm import ContextKind
from engine.models.pick import Pick
from engine.request.errors import InvalidRequestError
from engine.request.options import GenerationOptions, Remasking
from engine.request.outputs import FinishReason, SequenceSummary
from engine.request.sampling_params import SamplingParams
from engine.training import denoise
from tests.engine.engines import (
    Ask,
    Result,
    TinyModels,
    add,
    batcher_of,
    check_nothing_leaked,
    make_engine,
    run_all,
    tokens,
)
from tests.engine.tiny_diffusion import (
    KINDS,
    MASK,
    THRESHOLD,
    by_reference,
    plain_denoise,
    tiny_diffusion,
)

START = "Once upon a time there was a little"
GREEDY = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)
SAMPLED = replace(GREEDY, temperature=1.0, seed=5)
ANY_ORDER = GenerationOptions(confidence_threshold=THRESHOLD)


@pytest.fixture(params=["llada", "dream", "ours"])
def kind(request: pytest.FixtureRequest, models: TinyModels) -> TinyModels:
    return tiny_diffusion(models, KINDS[request.param])


def asks_of(params: SamplingParams = SAMPLED, **options: object) -> list[Ask]:
    chosen = replace(ANY_ORDER, **options)  # type: ignore[arg-type]
    return [
        Ask(tokens(count, count), params, "diffusion", options=chosen, choice=count)
        for count in (3, 21)
    ]


def summary_of(result: Result) -> SequenceSummary:
    assert result.summary is not None
    return result.summary


def stepwise(models: TinyModels, ask: Ask) -> tuple[Result, list[int]]:
    """The result, and how many tokens each output had."""
    engine, result, sizes = make_engine(models), Result(), []
    add(engine, "0", ask)
    while engine.has_work:
        for output in engine.step():
            result.take(output)
            sizes.append(len(output.token_ids))
    return result, sizes


def test_the_shipped_model_writes_what_its_reference_writes(shipped: TinyModels) -> None:
    prompt = shipped.tokenizer.encode(START)
    (result,) = run_all(make_engine(shipped, max_model_len=128), [Ask(prompt, GREEDY, "diffusion")])
    expected = by_reference(shipped, denoise.canvas, prompt, 16, 0.9)
    assert result.token_ids == expected.token_ids
    assert summary_of(result).num_forwards == expected.num_forwards


def test_a_stream_grows_without_a_gap_and_before_the_canvas_is_whole(kind: TinyModels) -> None:
    for ask in asks_of(remasking=Remasking.RANDOM, confidence_threshold=None):
        result, sizes = stepwise(kind, ask)
        assert sum(sizes) == len(result.token_ids) == 16
        assert 1 < len(sizes) < 16, "some steps reveal what cannot be given out yet"


def test_denoising_steps_are_those_of_the_whole_canvas(kind: TinyModels) -> None:
    options = GenerationOptions(denoising_steps=5)
    asks = [replace(ask, options=options) for ask in asks_of()]
    for result in run_all(make_engine(kind), asks):
        assert summary_of(result).num_forwards == 5


def test_tokens_are_a_function_of_prompt_and_seed(
    kind: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever runs beside, however many pages, in however many pieces the prompt is read."""
    asks = asks_of(suffixes=((5, 6),)) + asks_of()
    together = run_all(make_engine(kind), asks)
    alone = [run_all(make_engine(kind, page_size=8), [ask])[0] for ask in asks]
    assert [r.token_ids for r in alone] == [r.token_ids for r in together]
    monkeypatch.setattr(diffusion_reader, "MAX_READ_ROWS", 8)
    in_pieces = run_all(make_engine(kind), asks)
    assert [r.token_ids for r in in_pieces] == [r.token_ids for r in together]
    others = [replace(ask, params=replace(SAMPLED, seed=6)) for ask in asks]
    for one, other in zip(together, run_all(make_engine(kind), others), strict=True):
        assert one.token_ids != other.token_ids


def test_a_half_revealed_canvas_outlives_a_pre_emption(kind: TinyModels) -> None:
    ask = asks_of()[1]
    (expected,) = run_all(make_engine(kind), [ask])
    engine, result = make_engine(kind), Result()
    add(engine, "0", ask)
    while engine.has_work:
        for output in engine.step():
            result.take(output)
        for sequence in batcher_of(engine).running:
            batcher_of(engine)._release_pages(sequence)
            sequence.num_preemptions += 1
    assert result.token_ids == expected.token_ids
    assert summary_of(result).num_forwards == summary_of(expected).num_forwards


PENALIZED = replace(SAMPLED, presence_penalty=2.0, repetition_penalty=1.3)


@pytest.mark.parametrize("params", [SAMPLED, PENALIZED], ids=["plain", "penalized"])
@pytest.mark.parametrize("suffixes", [(), ((5, 6),), ((5,), (6,))])
def test_a_rerun_goes_on_after_what_was_given_out(
    kind: TinyModels, suffixes: tuple[tuple[int, ...], ...], params: SamplingParams
) -> None:
    asks = asks_of(params, suffixes=suffixes)
    expected = run_all(make_engine(kind), asks)
    again = [
        replace(ask, replay=result.token_ids[:7])
        for ask, result in zip(asks, expected, strict=True)
    ]
    results = run_all(make_engine(kind), again)
    for result, whole in zip(results, expected, strict=True):
        assert result.token_ids == whole.token_ids[7:]
        assert summary_of(result).hole_lengths == summary_of(whole).hole_lengths


def test_an_aborted_canvas_leaves_nothing_behind(kind: TinyModels) -> None:
    engine = make_engine(kind)
    for number, ask in enumerate(asks_of()):
        add(engine, str(number), ask)
    for _ in range(2):
        engine.step()
    for number in range(2):
        engine.abort(str(number))
    check_nothing_leaked(engine)
    assert not batcher_of(engine).strategies["diffusion"]._blocks  # type: ignore[attr-defined]


def test_an_end_of_text_ends_the_sequence_where_nothing_is_filled_in(kind: TinyModels) -> None:
    ask = asks_of()[0]
    (whole,) = run_all(make_engine(kind), [ask])
    end = whole.token_ids[6]
    (cut,) = run_all(
        make_engine(kind), [replace(ask, params=replace(SAMPLED, stop_token_ids=(end,)))]
    )
    assert cut.token_ids == whole.token_ids[: whole.token_ids.index(end) + 1]
    assert cut.finish_reason is FinishReason.STOP
    assert summary_of(cut).num_forwards <= summary_of(whole).num_forwards


def test_a_block_causal_model_writes_within_one_block(models: TinyModels) -> None:
    """What its block has of the prompt stays; more than the block holds is refused."""
    fast_dllm = tiny_diffusion(models, KINDS["fast_dllm"])
    prompt = tokens(11, 1)  # blocks of 8: three tokens of the second are known
    options = replace(ANY_ORDER, suffixes=((5,),))
    ask = Ask(prompt, replace(GREEDY, max_tokens=4), "diffusion", options=options)
    (result,) = run_all(make_engine(fast_dllm), [ask])
    text = [*prompt, *[MASK] * 4, 5]
    plain_denoise(fast_dllm, text, 8, 16, THRESHOLD)
    assert result.token_ids == text[11:15]
    (unlimited,) = run_all(
        make_engine(fast_dllm), [replace(ask, params=replace(GREEDY, max_tokens=None))]
    )
    assert unlimited.token_ids == result.token_ids
    with pytest.raises(InvalidRequestError, match="semi_ar") as caught:
        run_all(make_engine(fast_dllm), [replace(ask, params=replace(GREEDY, max_tokens=5))])
    assert caught.value.param == "max_tokens"


def test_without_max_tokens_the_canvas_has_128_or_what_room_there_is(kind: TinyModels) -> None:
    params = replace(GREEDY, max_tokens=None)
    options = GenerationOptions(denoising_steps=1)
    for max_model_len, expected in ((256, 128), (64, 61)):
        engine = make_engine(kind, max_model_len=max_model_len)
        (result,) = run_all(engine, [Ask([1, 2, 3], params, "diffusion", options=options)])
        assert len(result.token_ids) == expected


@pytest.mark.parametrize(
    ("name", "params", "options"),
    [
        ("max_tokens", replace(GREEDY, max_tokens=1), GenerationOptions(suffixes=((1,), (2,)))),
        ("max_tokens", GREEDY, GenerationOptions(suffixes=((1,) * 240,))),
        ("suffixes", GREEDY, GenerationOptions(suffixes=((512,),))),
        ("stop", replace(GREEDY, stop=("a",)), GenerationOptions(suffixes=((1,), (2,)))),
        ("min_tokens", replace(GREEDY, min_tokens=2), GenerationOptions(suffixes=((1,), (2,)))),
        ("block_length", GREEDY, GenerationOptions(block_length=8)),
        ("logprobs", replace(GREEDY, logprobs=0), GenerationOptions()),
        (
            "remasking",
            GREEDY,
            GenerationOptions(confidence_threshold=0.5, remasking=Remasking.RANDOM),
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    kind: TinyModels, name: str, params: SamplingParams, options: GenerationOptions
) -> None:
    assert kind.diffusion is not None
    assert kind.diffusion.config.context is not ContextKind.BLOCK_CAUSAL
    with pytest.raises(InvalidRequestError) as caught:
        make_engine(kind).make_sequence("0", [1, 2], params, mode="diffusion", options=options)
    assert caught.value.param == name


def test_a_mask_that_stays_is_drawn_anew_in_the_next_step(
    kind: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the noise of one step for all, a token once drawn would come back and back."""
    asks = asks_of(replace(SAMPLED, temperature=3.0), confidence_threshold=1.0)
    keyed = run_all(make_engine(kind), asks)

    def pick_of_step_0(rows: Rows) -> Pick:
        return denoise_pick(rows)._replace(denoising_step=0)

    monkeypatch.setattr(forwards, "denoise_pick", pick_of_step_0)
    unkeyed = run_all(make_engine(kind), asks)
    for one, other in zip(keyed, unkeyed, strict=True):
        assert one.token_ids != other.token_ids


def test_what_was_given_out_stands_even_where_a_rerun_would_write_otherwise(
    kind: TinyModels,
) -> None:
    """And the rest is written in its light."""
    (ask,) = asks_of()[:1]
    (whole,) = run_all(make_engine(kind), [ask])
    given = [(token_id + 1) % 200 for token_id in whole.token_ids[:8]]
    (rest,) = run_all(make_engine(kind), [replace(ask, replay=given)])
    assert len(rest.token_ids) == 8
    assert rest.token_ids != whole.token_ids[8:]
