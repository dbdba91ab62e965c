"""A diffusion model through pages: equal to its reference, and a drafter on its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.generation.diffusion_reader import Block, DiffusionReader
from engine.generation.forwards import Forwards
from engine.models.attention import sdpa_backend
from engine.models.model_runner import ModelRunner
from engine.models.token_sampler import TokenSampler
from engine.request.sampling_params import SamplingParams
from engine.request.sequence import Sequence
from engine.training.denoise import block_logits
from tests.engine.engines import CPU, Ask, TinyModels, count_drafts, make_engine, run_all
from tests.engine.tiny_diffusion import by_reference

PROMPT = "I would like to book a table for two people at an Italian place in San Jose."


def test_blocks_read_in_turns_through_pages_equal_the_reference(shipped: TinyModels) -> None:
    """First the prompt with a block, then two more tokens and a block half revealed."""
    assert shipped.diffusion is not None
    runner = ModelRunner(
        None, None, num_pages=64, page_size=4, backend=sdpa_backend, diffusion=shipped.diffusion
    )
    reader = DiffusionReader(shipped.diffusion.config)
    forwards = Forwards(runner, TokenSampler(shipped.tokenizer, CPU))
    mask = shipped.diffusion.config.mask_token_id
    prompt = shipped.tokenizer.encode(PROMPT)
    params = SamplingParams(temperature=0.0)
    sequence = Sequence("a", prompt, params, shipped.tokenizer, max_model_len=256, mode="deer")
    sequence.page_ids = list(range(1, 40))
    for block in ([mask] * 8, [mask, 77, mask, mask, 78]):
        rows = reader.block_rows(sequence, Block(block, len(block)))
        assert rows.start == (0 if sequence.num_tokens == len(prompt) else len(prompt) - 1)
        (output,) = forwards.denoise([rows])
        expected = by_reference(shipped, block_logits, sequence.token_ids, block)
        torch.testing.assert_close(output.logits, expected, atol=2e-4, rtol=1e-4)
        assert output.token_ids == expected.argmax(-1).tolist()
        sequence.token_ids += [40, 41]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_diffusion_model_drafts_alone_and_changes_no_token(
    shipped: TinyModels, temperature: float
) -> None:
    prompts = [shipped.tokenizer.encode(PROMPT[: 20 * n]) for n in (1, 2, 3)]
    params = SamplingParams(max_tokens=24, temperature=temperature, seed=5, ignore_eos=True)
    plain = [Ask(prompt, params) for prompt in prompts]
    expected = run_all(make_engine(shipped, max_model_len=128), plain)
    asks = [replace(one, mode="deer", draft_length=4) for one in plain]
    results = run_all(make_engine(shipped, max_model_len=128, num_pages=40), asks)
    assert [r.token_ids for r in results] == [r.token_ids for r in expected]
    accepted, refused = count_drafts(results)
    assert accepted > 5 and refused > 5, "the test proves nothing"
