"""`apd`: what stands of the diffusion model's tokens in both forms, exactly where that is known."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

import pytest

from engine.build import build_engine
from engine.dfastllm_engine import DFastLLMEngine
from engine.engine_config import EMBEDDED, EngineConfig
from engine.generation.apd_window import WindowReader
from engine.models.diffusion_lm import ContextKind
from engine.request.errors import InvalidRequestError
from engine.request.options import Acceptance, GenerationOptions
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import (
    Ask,
    TinyModels,
    add,
    batcher_of,
    check_nothing_leaked,
    make_engine,
    run_all,
    tokens,
)
from tests.engine.tiny_diffusion import drafting_diffusion

Options = GenerationOptions
TEXT = "I would like to book a table for two people at an Italian place in San Jose."


@pytest.fixture(scope="module")
def both(models: TinyModels) -> TinyModels:
    """The tiny verifier and drafter, and a tiny diffusion model beside them."""
    return replace(models, diffusion=drafting_diffusion())


@pytest.fixture(scope="module")
def bidirectional(models: TinyModels) -> TinyModels:
    diffusion = drafting_diffusion(ContextKind.BIDIRECTIONAL)
    return replace(models, drafter=None, diffusion=diffusion)


def ask(models: TinyModels, options: Options, *, seed: int = 0, temperature: float = 1.0) -> Ask:
    prompt = models.tokenizer.encode(TEXT)[: 12 + seed]
    params = SamplingParams(seed=seed, temperature=temperature, max_tokens=24, ignore_eos=True)
    return Ask(prompt, params, "apd", options=options)


def commits(engine: DFastLLMEngine, one: Ask) -> list[list[int]]:
    """The tokens of each step that gave some."""
    add(engine, "a", one)
    steps = []
    while engine.has_work:
        steps += [list(output.token_ids) for output in engine.step() if output.token_ids]
    return steps


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_without_weight_each_token_but_a_draft_s_first_is_the_verifier_s(
    shipped: TinyModels, temperature: float
) -> None:
    one = ask(shipped, Options(apd_mix_weight=0.0, apd_lookahead=6), temperature=temperature)
    first, *drafts = commits(make_engine(shipped), one)
    assert len(first) == 1, "by the verifier, which has read the prompt"
    known, num_checked, num_own = list(first), 0, 0
    for draft in drafts:
        for index, token_id in enumerate(draft):
            (alone,) = run_all(
                make_engine(shipped),
                [
                    replace(
                        one,
                        mode="ar",
                        options=Options(),
                        replay=known,
                        params=replace(one.params, max_tokens=len(known) + 1),
                    )
                ],
            )
            if index:
                assert [token_id] == alone.token_ids
            num_checked += index > 0
            num_own += index == 0 and [token_id] != alone.token_ids
            known.append(token_id)
    assert num_checked > 3 and num_own, "the test proves nothing"


def test_with_all_the_weight_all_that_was_drawn_stands(both: TinyModels) -> None:
    one = ask(both, Options(apd_mix_weight=1.0, apd_lookahead=5))
    first, *drafts = commits(make_engine(both), one)
    assert [len(draft) for draft in drafts] == [5, 5, 5, 5, 3]
    alone = replace(one, options=Options(apd_threshold=0.0, apd_lookahead=5), replay=first)
    assert commits(make_engine(both), alone) == drafts, "the diffusion model's own"


def test_more_weight_lets_more_stand(shipped: TinyModels) -> None:
    num_steps = [
        sum(
            len(commits(make_engine(shipped), ask(shipped, Options(apd_mix_weight=weight), seed=s)))
            for s in range(2)
        )
        for weight in (0.0, 0.7, 1.0)
    ]
    assert num_steps[0] > num_steps[1] > num_steps[2]


def test_without_a_verifier_tokens_stand_while_the_model_is_sure() -> None:
    """Loaded alone, as a server would."""
    engine = build_engine(
        EngineConfig(diffusion_path=str(EMBEDDED / "diffusion"), default_mode="apd")
    )
    prompt = engine.tokenizer.encode(TEXT)
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    sizes = {}
    for name, options in {
        "sure": Options(confidence_threshold=1.0),
        "half": Options(apd_threshold=0.4),
        "any": Options(apd_threshold=0.0, apd_lookahead=8),
        "four": Options(apd_threshold=0.0, apd_max_parallel=4),
        "adaptive": Options(),
    }.items():
        steps = commits(engine, Ask(prompt, params, "apd", options=options))
        assert sum(map(len, steps)) == 24
        sizes[name] = [len(step) for step in steps]
    assert sizes["sure"] == [1] * 24
    assert sizes["any"] == [8] * 3 and sizes["four"] == [4] * 6
    assert 1 in sizes["half"] and max(sizes["half"]) > 1
    assert len(sizes["half"]) < len(sizes["adaptive"]) <= 24
    nothing = Ask(prompt, replace(params, max_tokens=0), "apd")
    (result,) = run_all(engine, [nothing])
    assert result.token_ids == [] and result.finish_reason == "length"
    with pytest.raises(InvalidRequestError) as refused:
        engine.make_sequence("a", prompt, params, options=Options(apd_mix_weight=0.5))
    assert refused.value.param == "apd_mix_weight"
    check_nothing_leaked(engine)


def ways() -> list[tuple[str, Options]]:
    return [
        ("apd", Options(apd_mix_weight=0.5, apd_lookahead=4)),
        ("ar", Options()),
        ("apd", Options(apd_threshold=0.01, apd_lookahead=4)),
        ("spec_diff", Options(draft_length=4, denoising_steps=2)),
        ("apd", Options(apd_max_parallel=3)),
        ("deer", Options(draft_length=3)),
        ("deer", Options(draft_length=2, acceptance=Acceptance.REJECTION)),
    ]


@pytest.mark.parametrize("num_pages", [512, 40], ids=["room", "pre-emption"])
def test_a_mixed_batch_gives_each_what_it_gives_alone(both: TinyModels, num_pages: int) -> None:
    """Under pre-emption all but p / q, whose texts are others then, of the same distribution."""
    asks = [
        Ask(
            tokens(4 + 3 * seed, seed),
            SamplingParams(seed=seed, max_tokens=14, temperature=seed % 3 / 2, ignore_eos=True),
            mode,
            options=options,
        )
        for seed, (mode, options) in enumerate([*ways(), *ways()])
        if num_pages == 512 or options.acceptance is Acceptance.COUPLED
    ]
    alone = [run_all(make_engine(both, prefix_cache=False), [one])[0] for one in asks]
    engine = make_engine(both, num_pages=num_pages)
    together = run_all(engine, asks)
    for one, result, expected in zip(asks, together, alone, strict=True):
        assert result.token_ids == expected.token_ids, one.mode
        assert result.summary is not None
        assert result.summary.is_lossless == (one.mode != "apd")
    assert (batcher_of(engine).stats.num_preemptions > 0) == (num_pages == 40)
    check_nothing_leaked(engine)


def rows_and_tokens(models: TinyModels, options: Options) -> tuple[float, Seq[int]]:
    engine = make_engine(models)
    one = Ask(tokens(40, 2), SamplingParams(seed=3, max_tokens=20), "apd", options=options)
    (result,) = run_all(engine, [one])
    check_nothing_leaked(engine)
    return engine.metrics()["num_denoise_rows"], result.token_ids


@pytest.mark.parametrize("alone", [True, False], ids=["threshold", "mixture"])
def test_a_window_reads_only_the_last_tokens_anew(bidirectional: TinyModels, alone: bool) -> None:
    form = {"apd_threshold": 0.01} if alone else {"apd_mix_weight": 0.5}
    whole = Options(apd_lookahead=4, **form)
    rows, token_ids = rows_and_tokens(bidirectional, whole)
    wide_rows, wide_ids = rows_and_tokens(bidirectional, replace(whole, apd_window=200))
    assert (wide_rows, wide_ids) == (rows, token_ids), "a window over everything is exact"
    narrow_rows, narrow_ids = rows_and_tokens(bidirectional, replace(whole, apd_window=4))
    assert len(narrow_ids) == len(token_ids)
    assert narrow_rows < rows / 2


def test_a_window_leaves_out_only_what_was_read_before(bidirectional: TinyModels) -> None:
    sequence = make_engine(bidirectional).make_sequence(
        "a", tokens(20, 1), SamplingParams(), mode="apd"
    )
    reader, starts = WindowReader(mask_token_id=511), []
    for num_new in (0, 2, 9, 1):
        sequence.token_ids += tokens(num_new, 2)
        rows = reader.block_rows(sequence, 3, window=4, is_final=True)
        assert list(rows.token_ids) == [*sequence.token_ids[rows.start :], 511, 511, 511]
        starts.append(rows.start)
    sequence.num_preemptions += 1
    starts.append(reader.block_rows(sequence, 3, window=4, is_final=True).start)
    # All; the last 4 of 22; of 31 the 9 that were masks before; the last 4 of 32; all again.
    assert starts == [0, 18, 22, 28, 0]


def test_pre_emption_leaves_a_mixture_what_it_is(both: TinyModels) -> None:
    """The verifier, which reads the output again, must not write a token of its own."""
    options = Options(apd_mix_weight=0.5, apd_lookahead=4)
    asks = [
        Ask(tokens(4, seed), SamplingParams(seed=seed, max_tokens=20, ignore_eos=True), "apd")
        for seed in range(8)
    ]
    asks = [replace(one, options=options) for one in asks]
    alone = [run_all(make_engine(both), [one])[0].token_ids for one in asks]
    engine = make_engine(both, num_pages=20)
    assert [result.token_ids for result in run_all(engine, asks)] == alone
    assert batcher_of(engine).stats.num_preemptions > 3
    check_nothing_leaked(engine)


def test_an_aborted_sequence_leaves_nothing(both: TinyModels) -> None:
    engine = make_engine(both)
    for name, options in (("a", Options()), ("b", Options(apd_threshold=0.5))):
        add(engine, name, ask(both, options))
    for _ in range(3):
        engine.step()
    engine.abort("a")
    engine.abort("b")
    check_nothing_leaked(engine)


def test_knobs_that_have_no_use_here_are_refused_by_name(both: TinyModels) -> None:
    engine = make_engine(both)
    for options, param in (
        (Options(apd_window=8), "apd_window"),
        (Options(apd_lookahead=1000), "apd_lookahead"),
        (Options(apd_mix_weight=0.5, apd_max_parallel=3), "apd_max_parallel"),
        (Options(apd_mix_weight=0.5, confidence_threshold=0.9), "confidence_threshold"),
        (Options(draft_length=3), "draft_length"),
    ):
        with pytest.raises(InvalidRequestError) as refused:
            engine.make_sequence("a", tokens(4, 1), SamplingParams(), mode="apd", options=options)
        assert refused.value.param == param
    with pytest.raises(InvalidRequestError) as refused:
        engine.make_sequence(
            "a",
            tokens(4, 1),
            SamplingParams(prompt_logprobs=True),
            mode="apd",
            options=Options(apd_max_parallel=3),
        )
    assert refused.value.param == "prompt_logprobs"
    for name in ("apd_lookahead", "apd_window", "apd_max_parallel"):
        with pytest.raises(InvalidRequestError, match=name):
            Options(**{name: 0})
    for name in ("apd_mix_weight", "apd_threshold"):
        with pytest.raises(InvalidRequestError, match=name):
            Options(**{name: 1.5})
