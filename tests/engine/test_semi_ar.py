"""semi_ar: the tokens of plain loops without a cache, alone and beside others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from engine.dfastllm_engine import DFastLLMEngine
from engine.models.diffusion_lm import ContextKind
from engine.request.errors import InvalidRequestError
from engine.request.options import CanvasCache, GenerationOptions, Remasking
from engine.request.outputs import FinishReason
from engine.request.sampling_params import SamplingParams
from engine.training import denoise
from tests.engine.engines import (
    Ask,
    Result,
    TinyModels,
    add,
    check_nothing_leaked,
    make_engine,
    run_all,
    tokens,
)
from tests.engine.tiny_diffusion import (
    GREEDY,
    KINDS,
    SAMPLED,
    THRESHOLD,
    by_reference,
    num_forwards,
    plain_logits,
    plain_semi_ar,
    semi_ar_asks,
    tiny_diffusion,
)

PROMPTS = (
    "I would like to book a table for two people at an Italian place in San Jose.",
    "Once upon a time there was a little",
)
EXACT = GenerationOptions(canvas_cache=CanvasCache.NONE)


@pytest.fixture(params=KINDS.keys())
def kind(request: pytest.FixtureRequest, models: TinyModels) -> TinyModels:
    return tiny_diffusion(models, KINDS[request.param])


@pytest.fixture
def llada(models: TinyModels) -> TinyModels:
    return tiny_diffusion(models, KINDS["llada"])


@pytest.mark.parametrize("block_length", [8, 32])
def test_the_shipped_model_writes_what_its_reference_writes(
    shipped: TinyModels, block_length: int
) -> None:
    prompts = [shipped.tokenizer.encode(text) for text in PROMPTS]
    params = replace(GREEDY, max_tokens=20)
    options = GenerationOptions(block_length=block_length)  # the threshold of 0.9 is the default
    asks = [Ask(prompt, params, "semi_ar", options=options) for prompt in prompts]
    results = run_all(make_engine(shipped, max_model_len=128), asks)
    for prompt, result in zip(prompts, results, strict=True):
        expected = by_reference(shipped, denoise.semi_ar, prompt, 20, block_length, 0.9)
        assert result.token_ids == expected.token_ids
        assert num_forwards(result) == expected.num_forwards
        assert result.finish_reason is FinishReason.LENGTH


def test_without_a_cache_every_kind_of_model_writes_what_a_plain_loop_writes(
    kind: TinyModels,
) -> None:
    assert kind.diffusion is not None
    is_cacheable = kind.diffusion.config.context is ContextKind.BIDIRECTIONAL
    exact = {"canvas_cache": CanvasCache.NONE} if is_cacheable else {}
    asks = semi_ar_asks(kind, replace(GREEDY, max_tokens=15), **exact)
    results = run_all(make_engine(kind), asks)
    total = 0
    for ask, result in zip(asks, results, strict=True):
        block_length = kind.diffusion.config.block_length or 6
        expected, count = plain_semi_ar(kind, ask.prompt, 15, block_length, THRESHOLD)
        assert result.token_ids == expected
        assert num_forwards(result) == count
        total += count
    assert 9 < total < 45, "neither all at once nor one by one, or the test proves nothing"


@pytest.mark.parametrize("cache", [CanvasCache.DUAL, CanvasCache.PREFIX])
@pytest.mark.parametrize("name", ["llada", "dream"])
def test_a_cache_costs_nothing_where_keys_and_values_depend_on_their_own_token_alone(
    models: TinyModels, name: str, cache: CanvasCache
) -> None:
    one_layer = tiny_diffusion(models, KINDS[name], num_layers=1)
    engines = [make_engine(one_layer) for _ in range(2)]
    exact = run_all(engines[0], semi_ar_asks(one_layer, canvas_cache=CanvasCache.NONE))
    cached = run_all(engines[1], semi_ar_asks(one_layer, canvas_cache=cache))
    assert [r.token_ids for r in cached] == [r.token_ids for r in exact]
    rows = [engine.metrics()["num_denoise_rows"] for engine in engines]
    assert rows[1] < 0.8 * rows[0]


@pytest.mark.parametrize("cache", [None, *CanvasCache])
@pytest.mark.parametrize("name", ["llada", "dream"])
def test_the_first_forward_of_a_block_reads_the_whole_canvas(
    models: TinyModels, name: str, cache: CanvasCache | None
) -> None:
    """With one step a block there is no other forward."""
    kind = tiny_diffusion(models, KINDS[name])
    prompt, canvas = tokens(9, 1), [KINDS[name].mask_token_id] * 12
    options = GenerationOptions(block_length=6, denoising_steps=1, canvas_cache=cache)
    params = replace(GREEDY, max_tokens=12)
    (result,) = run_all(make_engine(kind), [Ask(prompt, params, "semi_ar", options=options)])
    text = [*prompt, *canvas]
    for start in (9, 15):
        text[start : start + 6] = plain_logits(kind, text, start)[start : start + 6].argmax(-1)
    assert result.token_ids == [int(token_id) for token_id in text[9:]]
    assert num_forwards(result) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"confidence_threshold": 0.1},
        {"confidence_threshold": None, "denoising_steps": 3},
        {"confidence_threshold": None, "unmasking_factor": 1.5},
        {"confidence_threshold": None, "remasking": Remasking.RANDOM},
        {"remasking": Remasking.ENTROPY},
        {"remasking": Remasking.MARGIN, "denoising_steps": 2},
    ],
    ids=str,
)
def test_sampled_tokens_are_a_function_of_prompt_and_seed(
    models: TinyModels, options: dict[str, object]
) -> None:
    """Alone, beside others and after others: and all rules differ from plain left to right."""
    ours = tiny_diffusion(models, KINDS["ours"])
    asks = semi_ar_asks(ours, **options)
    together = run_all(make_engine(ours), asks)
    alone = [run_all(make_engine(ours, page_size=8), [ask])[0] for ask in reversed(asks)]
    assert [r.token_ids for r in together] == [r.token_ids for r in reversed(alone)]
    others = [replace(ask, params=replace(SAMPLED, seed=12)) for ask in asks]
    other = run_all(make_engine(ours), others)
    assert [r.token_ids for r in together] != [r.token_ids for r in other]


def test_steps_and_factor_say_how_many_forwards_a_block_takes(llada: TinyModels) -> None:
    asks = semi_ar_asks(llada, confidence_threshold=None, denoising_steps=3)
    for result in run_all(make_engine(llada), asks):
        assert num_forwards(result) == 3 * 4


def test_an_end_of_text_inside_a_block_ends_the_sequence(llada: TinyModels) -> None:
    (ask,) = semi_ar_asks(llada)[:1]
    (whole,) = run_all(make_engine(llada), [ask])
    end = whole.token_ids[8]
    params = replace(SAMPLED, stop_token_ids=(end,))
    (cut,) = run_all(make_engine(llada), [replace(ask, params=params)])
    assert cut.token_ids == whole.token_ids[: whole.token_ids.index(end) + 1]
    assert cut.finish_reason is FinishReason.STOP


def test_a_block_is_given_up_behind_an_end_of_text(llada: TinyModels) -> None:
    options = GenerationOptions(block_length=16, remasking=Remasking.RANDOM)
    params = replace(SAMPLED, seed=12, stop_token_ids=(7,), logit_bias={7: 100.0})
    (result,) = run_all(make_engine(llada), [Ask([1, 2], params, "semi_ar", options=options)])
    assert result.token_ids == [7]
    assert num_forwards(result) < 16


def test_min_tokens_bans_the_end_where_it_would_come_too_early(llada: TinyModels) -> None:
    (ask,) = semi_ar_asks(llada)[:1]
    bias = {7: 100.0}
    params = replace(SAMPLED, stop_token_ids=(7,), logit_bias=bias, min_tokens=9)
    (result,) = run_all(make_engine(llada), [replace(ask, params=params)])
    assert result.token_ids.index(7) == 9 and len(result.token_ids) == 10


def test_a_stream_grows_by_whole_blocks(llada: TinyModels) -> None:
    engine = make_engine(llada)
    add(engine, "0", semi_ar_asks(llada, replace(SAMPLED, max_tokens=15))[0])
    sizes = [len(output.token_ids) for output in _steps(engine)]
    assert sizes == [6, 6, 3]


def test_every_mode_in_one_batch_writes_what_it_writes_alone(shipped: TinyModels) -> None:
    """And all that denoise share one forward a round."""
    prompts = [shipped.tokenizer.encode(text) for text in PROMPTS]
    both = [replace(params, max_tokens=12) for params in (GREEDY, SAMPLED)]
    asks = [
        Ask(prompt, params, mode, draft_length=4 if mode == "deer" else None)
        for prompt, params in zip(prompts, both, strict=True)
        for mode in ("ar", "deer", "semi_ar", "diffusion")
    ]
    alone = [run_all(make_engine(shipped, max_model_len=128), [ask])[0] for ask in asks]
    engine = make_engine(shipped, max_model_len=128, max_batch_size=16)
    together = run_all(engine, asks)
    assert [r.token_ids for r in together] == [r.token_ids for r in alone]
    counts = [[num_forwards(result) for result in results] for results in (together, alone)]
    denoising = [i for i, ask in enumerate(asks) if ask.mode in ("semi_ar", "diffusion")]
    own, own_alone = ([part[i] for i in denoising] for part in counts)
    assert own == own_alone
    # The drafts of deer, which ends first, ride in the same forwards.
    assert engine.metrics()["num_denoise_forwards"] == max(own)
    check_nothing_leaked(engine)


def test_a_sequence_counts_the_forwards_that_it_had_rows_in(models: TinyModels) -> None:
    (result,) = run_all(make_engine(models), [Ask(tokens(5, 1), replace(GREEDY, max_tokens=4))])
    assert num_forwards(result) == 4


@pytest.mark.parametrize(
    ("name", "params", "options"),
    [
        ("logprobs", replace(GREEDY, logprobs=1), GenerationOptions()),
        ("prompt_logprobs", replace(GREEDY, prompt_logprobs=True), GenerationOptions()),
        ("max_tokens", replace(GREEDY, max_tokens=0), GenerationOptions()),
        ("min_tokens", replace(GREEDY, min_tokens=25), GenerationOptions()),
        ("draft_length", GREEDY, GenerationOptions(draft_length=3)),
        ("suffixes", GREEDY, GenerationOptions(suffixes=((1,),))),
        (
            "unmasking_factor",
            GREEDY,
            GenerationOptions(confidence_threshold=0.5, unmasking_factor=1.0),
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    llada: TinyModels, name: str, params: SamplingParams, options: GenerationOptions
) -> None:
    engine = make_engine(llada)
    with pytest.raises(InvalidRequestError) as caught:
        engine.make_sequence("0", [1, 2], params, mode="semi_ar", options=options)
    assert caught.value.param == name


def test_a_block_causal_model_refuses_other_blocks_and_a_cache_that_it_does_not_need(
    models: TinyModels,
) -> None:
    engine = make_engine(tiny_diffusion(models, KINDS["sdar"]))
    for name, options in (
        ("block_length", GenerationOptions(block_length=8)),
        ("canvas_cache", EXACT),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            engine.make_sequence("0", [1, 2], GREEDY, mode="semi_ar", options=options)
        assert caught.value.param == name


def test_without_max_tokens_a_bidirectional_model_gets_a_canvas_of_128(llada: TinyModels) -> None:
    ask = Ask([1, 2], SamplingParams(temperature=0.0, ignore_eos=True), "semi_ar")
    options = GenerationOptions(denoising_steps=1)
    (result,) = run_all(make_engine(llada), [replace(ask, options=options)])
    assert len(result.token_ids) == 128 and result.finish_reason is FinishReason.LENGTH


def _steps(engine: DFastLLMEngine) -> Iterator[Result]:
    while engine.has_work:
        for output in engine.step():
            yield Result(list(output.token_ids))
