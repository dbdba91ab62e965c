"""semi_ar with a model that denoises random tokens: transformers' own output, in any batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    EntropyBoundSampler,
)

from engine.build import EngineConfig, assemble_engine, build_engine
from engine.decoding.noise import NoiseStream, gumbel, integers
from engine.dfastllm_engine import DFastLLMEngine
from engine.models.attention import PagedContext, sdpa_backend
from engine.models.causal_lm import UnsupportedModelError
from engine.models.loader import Models
from engine.models.model_runner import ModelRunner
from engine.models.self_test import check_against_eager
from engine.request.errors import InvalidRequestError
from engine.request.options import GenerationOptions, Remasking
from engine.request.outputs import FinishReason
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import (
    Ask,
    TinyModels,
    add,
    make_engine,
    run_all,
    tokens,
)
from tests.engine.tiny_canvas import (
    CANVAS,
    LENGTH,
    PARAMS,
    STEPS,
    asks_of,
    beside,
    check_no_state_left,
    num_forwards,
    save_resting,
)
from tests.engine.tiny_models import VOCAB_SIZE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_resting(tmp_path_factory.mktemp("canvas"))


@pytest.fixture(scope="module")
def gemma(models: TinyModels, folder: Path) -> TinyModels:
    return beside(models, folder)


class SharedNoise:
    """Gives transformers' `generate` the random numbers of one request of ours."""

    def __init__(self, ask: Ask, patch: pytest.MonkeyPatch) -> None:
        self._ask = ask
        self._canvas = self._step = -1
        self.num_passes = 0
        prepare = DiffusionGemmaForBlockDiffusion._prepare_denoiser_inputs
        patch.setattr(
            DiffusionGemmaForBlockDiffusion,
            "_prepare_denoiser_inputs",
            lambda model, **inputs: self._begin(prepare, model, inputs),
        )
        patch.setattr(EntropyBoundSampler, "initialize_canvas", self._random_tokens)
        patch.setattr(torch, "multinomial", self._draw)
        # A mark for CUDA graphs, at whose import torch warns of itself.
        patch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)

    def _begin(self, prepare: Any, model: object, inputs: dict[str, Any]) -> object:
        self._canvas, self._step = self._canvas + 1, 0
        return prepare(model, **inputs)

    def _numbers(self) -> tuple[Tensor, ...]:
        """Seed, prompt, choice and output position of each place."""
        places = torch.arange(CANVAS) + self._canvas * CANVAS
        numbers = (self._ask.params.seed, self._ask.prompt_index, self._ask.choice)
        return (*(torch.full_like(places, n) for n in numbers), places)

    def _random_tokens(self, *_: object, **__: object) -> Tensor:
        steps = torch.full((CANVAS,), NoiseStream.RENOISING + self._step)
        return integers(*self._numbers(), steps, VOCAB_SIZE)[None]

    def _draw(self, probs: Tensor, num_samples: int) -> Tensor:
        assert num_samples == 1
        scores = probs.log()
        if not self._ask.params.is_greedy:
            steps = torch.full((CANVAS,), self._step)
            scores = scores + gumbel(*self._numbers(), VOCAB_SIZE, steps)
        self._step += 1
        self.num_passes += 1
        return scores.argmax(-1, keepdim=True)


@pytest.mark.parametrize(("temperature", "steps"), [(1.0, STEPS), (0.0, STEPS), (1.0, 3)])
def test_the_whole_output_is_that_of_transformers_given_the_same_noise(
    gemma: TinyModels,
    folder: Path,
    temperature: float,
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At 0 the candidates are the most probable tokens, and only what is drawn anew is random."""
    theirs: Any = DiffusionGemmaForBlockDiffusion.from_pretrained(
        folder, attn_implementation="eager"
    )
    asks = asks_of(replace(PARAMS, temperature=temperature), denoising_steps=steps)
    results = run_all(make_engine(gemma), asks)
    for ask, result in zip(asks, results, strict=True):
        with monkeypatch.context() as patch:
            noise = SharedNoise(ask, patch)
            expected = theirs.generate(
                torch.tensor([ask.prompt]), max_new_tokens=LENGTH, max_denoising_steps=steps
            )
        written = expected.sequences[0, len(ask.prompt) :].tolist()
        assert len(written) == 3 * CANVAS, "transformers writes whole canvases"
        assert result.token_ids == written[:LENGTH]
        assert num_forwards(result) == noise.num_passes
    longest = max(map(num_forwards, results))
    assert longest == 9 if steps == 3 else 9 < longest < 3 * STEPS, "some must come to rest"


def test_tokens_are_a_function_of_prompt_and_seed(gemma: TinyModels) -> None:
    """Alone, beside others and after others, with pages of another size."""
    together = run_all(make_engine(gemma), asks_of())
    alone = [run_all(make_engine(gemma, page_size=8), [ask])[0] for ask in reversed(asks_of())]
    assert [r.token_ids for r in together] == [r.token_ids for r in reversed(alone)]
    other = run_all(make_engine(gemma), asks_of(replace(PARAMS, seed=12)))
    assert all(a.token_ids != b.token_ids for a, b in zip(together, other, strict=True))


def test_it_shares_a_batch_with_a_verifiers_sequences(gemma: TinyModels) -> None:
    asks = [*asks_of(), Ask(tokens(9, 1), PARAMS, "ar")]
    alone = [run_all(make_engine(gemma), [ask])[0] for ask in asks]
    together = run_all(make_engine(gemma), asks)
    assert [r.token_ids for r in together] == [r.token_ids for r in alone]


def test_denoising_steps_limit_the_passes_over_a_canvas(gemma: TinyModels) -> None:
    for result in run_all(make_engine(gemma), asks_of(denoising_steps=2)):
        assert 3 <= num_forwards(result) <= 3 * 2
    for result in run_all(make_engine(gemma), asks_of(denoising_steps=1)):
        assert num_forwards(result) == 3


def test_a_bias_holds_for_what_is_written_and_for_what_the_next_pass_is_told(
    gemma: TinyModels,
) -> None:
    params = replace(PARAMS, logit_bias={7: 100.0}, stop_token_ids=(7,), min_tokens=9)
    (result,) = run_all(make_engine(gemma), asks_of(params)[:1])
    assert 7 not in result.token_ids[:9]
    assert result.token_ids[9:] == [7]
    assert result.finish_reason is FinishReason.STOP


def test_a_stream_grows_by_whole_canvases(gemma: TinyModels) -> None:
    engine = make_engine(gemma)
    add(engine, "0", asks_of()[0])
    assert [len(output) for output in _outputs(engine)] == [CANVAS, CANVAS, LENGTH - 2 * CANVAS]


def test_the_last_canvas_ends_where_the_context_ends(gemma: TinyModels) -> None:
    params = replace(PARAMS, max_tokens=None)
    engine = make_engine(gemma, max_model_len=40, num_pages=10)  # all of them full then
    (result,) = run_all(engine, [replace(asks_of(params)[2], prompt=tokens(21, 1))])
    assert len(result.token_ids) == 19 and result.finish_reason is FinishReason.LENGTH
    check_no_state_left(engine)


@pytest.mark.parametrize(
    ("name", "params", "options"),
    [
        ("confidence_threshold", PARAMS, {"confidence_threshold": 0.5}),
        ("unmasking_factor", PARAMS, {"unmasking_factor": 1.0}),
        ("remasking", PARAMS, {"remasking": Remasking.ENTROPY}),
        ("block_length", PARAMS, {"block_length": CANVAS}),
        ("draft_length", PARAMS, {"draft_length": 3}),
        ("denoising_steps", PARAMS, {"denoising_steps": 5000}),
        ("logprobs", replace(PARAMS, logprobs=1), {}),
        ("max_tokens", replace(PARAMS, max_tokens=0), {}),
        ("min_tokens", replace(PARAMS, min_tokens=21), {}),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(
    gemma: TinyModels, name: str, params: SamplingParams, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make_engine(gemma).make_sequence(
            "0", [1, 2], params, mode="semi_ar", options=GenerationOptions(**options)
        )
    assert caught.value.param == name


def test_a_server_of_such_a_model_alone_offers_semi_ar_alone(folder: Path) -> None:
    """Put together from its folder, self-test included."""
    config = EngineConfig(model_path=str(folder), device="cpu", max_model_len=64)
    engine = build_engine(config)
    assert engine.modes == ("semi_ar",)
    assert len(engine.generate(["Once upon"], replace(PARAMS, max_tokens=CANVAS))) == 1
    with pytest.raises(InvalidRequestError, match="this worker offers: semi_ar"):
        engine.make_sequence("0", [1], PARAMS, mode="diffusion")


@pytest.mark.parametrize("name", ["compile", "use_8bit"])
def test_what_its_forwards_cannot_be_yet_is_refused_by_name(
    gemma: TinyModels, folder: Path, name: str
) -> None:
    config = EngineConfig(model_path=str(folder), device="cpu", **{name: True})
    models = Models(None, None, None, gemma.canvas)
    with pytest.raises(UnsupportedModelError, match=f"{name} is not for diffusion_gemma"):
        assemble_engine(config, models, gemma.tokenizer)


def test_the_self_test_refuses_attention_that_is_blind_to_what_follows(gemma: TinyModels) -> None:
    def blind(
        q: Tensor, layer: int, context: PagedContext, scale: float, window: int | None
    ) -> Tensor:
        spans = [replace(span, visible_end=None) for span in context.batch.spans]
        causal = PagedContext(replace(context.batch, spans=spans), context.pool, sdpa_backend)
        return sdpa_backend(q, layer, causal, scale, window)

    runners = [
        ModelRunner(None, None, num_pages=33, page_size=4, backend=backend, canvas=gemma.canvas)
        for backend in (sdpa_backend, blind)
    ]
    check_against_eager(runners[0])
    with pytest.raises(UnsupportedModelError, match=r"diffusion_gemma.*differ"):
        check_against_eager(runners[1])


def _outputs(engine: DFastLLMEngine) -> Iterator[tuple[int, ...]]:
    while engine.has_work:
        for output in engine.step():
            yield output.token_ids
