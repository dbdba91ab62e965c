"""Flash attention on a CUDA device: every kernel that can be had agrees with SDPA and serves."""

from __future__ import annotations

import pytest
import torch

from engine.build import EngineConfig, build_engine
from engine.models.attention_choice import (
    AttentionNeed,
    AttentionUnavailableError,
    choose_attention,
    failed_trial,
)
from engine.models.flash_kernels import FLASH_KINDS, unmet_demand
from engine.models.kv_pool import KvShape
from engine.request.sampling_params import SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = torch.device("cuda", 0)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FLASH_KINDS)
def test_a_kernel_that_is_there_gives_what_sdpa_gives(
    name: str, dtype: torch.dtype, head_dim: int
) -> None:
    kind, shapes = FLASH_KINDS[name], [KvShape(1, 2, head_dim)]
    if reason := unmet_demand(kind, DEVICE, dtype, shapes):
        pytest.skip(reason)
    need = AttentionNeed(DEVICE, dtype, shapes)
    failures = [failed_trial(kind, need, size) for size in kind.page_sizes]
    assert None in failures, failures


@pytest.mark.parametrize("name", ["sdpa", *FLASH_KINDS])
def test_an_engine_serves_with_it_in_bf16(name: str) -> None:
    try:
        engine = build_engine(EngineConfig(device="cuda", attention=name))
    except AttentionUnavailableError as error:
        pytest.skip(str(error))
    params = SamplingParams(max_tokens=32, seed=3, ignore_eos=True)
    texts = engine.generate(["Once upon a time", "What is 12 * 4?"], params, mode="deer")
    assert all(texts)


def test_fp32_takes_sdpa_and_says_why() -> None:
    choice = choose_attention(AttentionNeed(DEVICE, torch.float32, [KvShape(1, 2, 64)]))
    assert choice.name == "sdpa"
    assert all("needs bfloat16 or float16" in reason for reason in choice.refused.values())
