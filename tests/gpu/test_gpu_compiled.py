"""Compilation and 8 bits on a CUDA device: the same tokens, and no graph beyond those at start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from engine.build import EngineConfig, build_engine
from engine.models.compiled import CUDA_BUCKETS, num_graphs
from engine.models.int8 import Int8Matrix
from engine.request.sampling_params import SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning"),
]

PROMPTS = ["Once upon a time", "I would like to book a table for two", "What is 12 * 4?"] * 3


@pytest.fixture(autouse=True)
def graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_deer_writes_the_tokens_of_ar_and_nothing_is_compiled_while_serving(
    temperature: float,
) -> None:
    engine = build_engine(EngineConfig(device="cuda", dtype="float32", compile=True))
    known = num_graphs()
    torch.compiler.set_stance("fail_on_recompile")
    params = SamplingParams(max_tokens=48, temperature=temperature, seed=11)
    expected = engine.generate(PROMPTS, params, mode="ar")
    assert engine.generate(PROMPTS, params, mode="deer") == expected
    assert num_graphs() == known


def test_a_cuda_graph_that_runs_again_reads_the_new_page_tables() -> None:
    """Attention is left out of the graphs; captured, it would answer as for the first prompt."""
    params = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)
    eager = build_engine(EngineConfig(device="cuda", dtype="float32"))
    engine = build_engine(EngineConfig(device="cuda", dtype="float32", compile=True))
    for prompt in PROMPTS[:3]:
        expected = eager.generate([prompt], params, mode="ar")
        assert engine.generate([prompt], params, mode="ar") == expected


@pytest.mark.parametrize("num_rows", [1, 2, 16, 17, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_8_bit_product_is_the_cpus_for_any_number_of_rows(
    dtype: torch.dtype, num_rows: int
) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(64, 128), torch.randn(num_rows, 128)
    expected = Int8Matrix.of(weight.to(dtype))(x.to(dtype))
    seen = Int8Matrix.of(weight.to(dtype).cuda())(x.to(dtype).cuda())
    torch.testing.assert_close(seen.cpu(), expected, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_deer_writes_the_tokens_of_ar_in_8_bits(is_compiled: bool) -> None:
    config = EngineConfig(device="cuda", dtype="float32", use_8bit=True, compile=is_compiled)
    engine = build_engine(config)
    params = SamplingParams(max_tokens=48, temperature=0.7, seed=11)
    expected = engine.generate(PROMPTS, params, mode="ar")
    assert engine.generate(PROMPTS, params, mode="deer") == expected


def test_buckets_cover_a_batch_of_whole_drafts() -> None:
    assert CUDA_BUCKETS[-1] >= 16 * 16
