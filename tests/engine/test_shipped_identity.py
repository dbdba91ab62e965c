"""The shipped pair as `serve` runs it: `deer` writes what `ar` writes, token for token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.build import EngineConfig, build_engine
from engine.decoding.noise import gumbel
from engine.dfastllm_engine import DFastLLMEngine
from engine.models.model_runner import ModelRunner
from engine.models.packing import Span
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import Ask, Result, check_nothing_leaked, count_drafts, run_all

NUM_SEEDS = 8
NUM_TOKENS = 24
NEAR_TIE = 1e-4
"""Scores closer than this may change places with the batch's shape; logits are of order ten."""
TURNS = (
    "I want to book a table for two at an Italian restaurant in San Jose.",
    "What is 12 * (4 + 3)?",
    "I'd like a large latte with oat milk, please.",
    "Spell the word standard.",
)


SETTINGS: dict[str, dict[str, Any]] = {
    "cache": {},
    "no cache": {"prefix_cache": False},
    "float32": {"dtype": "float32"},
}


@pytest.fixture(scope="module", params=SETTINGS)
def engine(request: pytest.FixtureRequest) -> Iterator[DFastLLMEngine]:
    built = build_engine(EngineConfig(**SETTINGS[request.param]))
    yield built
    check_nothing_leaked(built)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_deer_writes_the_tokens_of_ar_alone_and_in_mixed_batches(
    engine: DFastLLMEngine, temperature: float
) -> None:
    plain = [ask(engine, temperature, seed) for seed in range(NUM_SEEDS)]
    expected = [run_all(engine, [one])[0] for one in plain]
    alone = [run_all(engine, [replace(one, mode="deer", draft_length=7)])[0] for one in plain]
    mixed = run_all(engine, [in_a_mixed_batch(one, seed) for seed, one in enumerate(plain)])
    for one, reference, *others in zip(plain, expected, alone, mixed, strict=True):
        for result in others:
            assert_same(engine, one, result, reference)
    accepted, refused = count_drafts(alone + mixed)
    assert accepted > 20, "the test proves nothing: hardly a draft was accepted"
    assert refused > 20, "the test proves nothing: hardly a draft was refused"


def ask(engine: DFastLLMEngine, temperature: float, seed: int) -> Ask:
    """Every second request is a chat, the others continue a story."""
    tokenizer = engine.tokenizer
    if seed % 2:
        turn = {"role": "user", "content": TURNS[seed // 2]}
        prompt = tokenizer.apply_chat_template([turn])
    else:
        prompt = tokenizer.encode(
            "Once upon a time, there was a little girl named Lily." * (seed + 1)
        )
    params = SamplingParams(
        seed=seed, temperature=temperature, max_tokens=NUM_TOKENS, ignore_eos=True
    )
    return Ask(prompt, params)


def in_a_mixed_batch(one: Ask, seed: int) -> Ask:
    """Two that do not draft, two whose length the planner chooses, four of fixed lengths."""
    if seed < 2:
        return one
    return replace(one, mode="deer", draft_length=None if seed < 4 else seed - 1)


def assert_same(engine: DFastLLMEngine, one: Ask, result: Result, reference: Result) -> None:
    """Equal tokens; or equal up to a position where two tokens are as good as tied."""
    if result.token_ids == reference.token_ids:
        assert result.text == reference.text
        return
    pairs = list(zip(result.token_ids, reference.token_ids, strict=True))
    at = next(i for i, (seen, wanted) in enumerate(pairs) if seen != wanted)
    margin = score_margin(engine._runner, one, result.token_ids[:at], pairs[at])
    assert margin < NEAR_TIE, f"token {at} differs, and by {margin:.1e} that is no near tie"


@torch.inference_mode()
def score_margin(
    runner: ModelRunner, one: Ask, output: list[int], rivals: tuple[int, int]
) -> float:
    """How far apart the two tokens are in what the sampler takes the argmax of."""
    ids = [*one.prompt, *output]
    pages = list(range(1, len(ids) // runner.page_size + 2))
    logits = runner.verify([Span(ids, 0, pages)], [len(ids) - 1])[0].float()
    if one.params.temperature:
        numbers = [torch.tensor([n]) for n in (one.params.seed, 0, 0, len(output))]
        logits = logits / one.params.temperature + gumbel(*numbers, len(logits))[0]
    return abs(float(logits[rivals[0]] - logits[rivals[1]]))
