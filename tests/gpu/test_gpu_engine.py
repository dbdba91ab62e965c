"""The same promises on a CUDA device; `make test-gpu` runs these."""

from __future__ import annotations

import pytest
import torch

from engine.build import EngineConfig, build_engine
from engine.decoding.noise import gumbel
from engine.dfastllm_engine import DFastLLMEngine
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
