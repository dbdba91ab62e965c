"""The same promises on a CUDA device; `make test-gpu` runs these."""

from __future__ import annotations

import re

import pytest
import torch

from engine.build import EngineConfig, build_engine
from engine.decoding.noise import gumbel
from engine.decoding.token_mask import apply_token_masks
from engine.dfastllm_engine import DFastLLMEngine
from engine.request.grammar import Grammar, GrammarKind
from engine.request.sampling_params import SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

PROMPTS = ["Once upon a time", "I would like to book a table for two", "What is 12 * 4?"] * 3


@pytest.fixture(scope="module")
def engine_in_fp32() -> DFastLLMEngine:
    return build_engine(EngineConfig(device="cuda", dtype="float32"))


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_deer_writes_the_tokens_of_ar_in_fp32(
    engine_in_fp32: DFastLLMEngine, temperature: float
) -> None:
    params = SamplingParams(max_tokens=48, temperature=temperature, seed=11)
    expected = engine_in_fp32.generate(PROMPTS, params, mode="ar")
    assert engine_in_fp32.generate(PROMPTS, params, mode="deer") == expected


def test_noise_is_the_same_on_both_devices() -> None:
    numbers = [torch.arange(64), torch.zeros(64).long(), torch.zeros(64).long(), torch.arange(64)]
    on_cpu = gumbel(*numbers, vocab_size=4096)
    on_gpu = gumbel(*(n.cuda() for n in numbers), vocab_size=4096)
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-5, rtol=1e-6)


def test_a_mask_refuses_on_the_device_what_it_refuses_on_the_cpu() -> None:
    logits = torch.randn(4, 1000)
    on_gpu = logits.cuda()
    rows, masks = [3, 0], [bytes(range(124)), bytes(reversed(range(124)))]
    apply_token_masks(logits, rows, masks)
    apply_token_masks(on_gpu, rows, masks)
    assert torch.equal(on_gpu.cpu(), logits)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_is_kept_to_and_changes_no_identity(
    engine_in_fp32: DFastLLMEngine, temperature: float
) -> None:
    grammar = Grammar(GrammarKind.REGEX, r"[A-Z][a-z ]{20,60}\.")
    params = SamplingParams(max_tokens=60, temperature=temperature, seed=11, grammar=grammar)
    expected = engine_in_fp32.generate(PROMPTS, params, mode="ar")
    assert engine_in_fp32.generate(PROMPTS, params, mode="deer") == expected
    assert all(re.fullmatch(grammar.definition, text) for text in expected)
