"""Penalties, bias and minimum length against the definitions, row by row and token by token."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.decoding.logit_processors import apply_processors, check_vocab, needs_processing
from engine.request.errors import InvalidRequestError
from engine.request.sampling_params import SamplingParams

VOCAB_SIZE = 12
TOKEN = st.integers(0, VOCAB_SIZE - 1)


def by_definition(
    logits: Tensor,
    params: SamplingParams,
    prompt: list[int],
    output: list[int],
    draft: list[int],
    forbidden: list[int],
) -> list[list[float]]:
    rows = []
    for j in range(len(logits)):
        row, before = logits[j].tolist(), output + draft[:j]
        for token_id in set(prompt) | set(before):
            value, penalty = row[token_id], params.repetition_penalty
            row[token_id] = value / penalty if value > 0 else value * penalty
        for token_id, count in Counter(before).items():
            row[token_id] -= count * params.frequency_penalty + params.presence_penalty
        for token_id, bias in params.logit_bias.items():
            row[token_id] += bias
        if len(before) < params.min_tokens:
            for token_id in forbidden:
                row[token_id] = -float("inf")
        rows.append(row)
    return rows


@settings(deadline=None, max_examples=60)
@given(
    prompt=st.lists(TOKEN, max_size=6),
    output=st.lists(TOKEN, max_size=6),
    draft=st.lists(TOKEN, max_size=5),
    params=st.builds(
        SamplingParams,
        presence_penalty=st.sampled_from([0.0, 0.5, -1.0]),
        frequency_penalty=st.sampled_from([0.0, 0.25]),
        repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
        logit_bias=st.dictionaries(TOKEN, st.sampled_from([-100.0, 2.0]), max_size=3),
        min_tokens=st.integers(0, 9),
    ),
    seed=st.integers(0, 999),
)
def test_every_row_of_a_draft_follows_the_definitions_along_its_own_prefix(
    prompt: list[int], output: list[int], draft: list[int], params: SamplingParams, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(draft) + 1, VOCAB_SIZE, generator=generator)
    expected = by_definition(logits, params, prompt, output, draft, [3, 7])
    before = logits.clone()
    result = apply_processors(logits, params, prompt, output, draft, [3, 7])
    assert result is logits
    for row, wanted in zip(result.tolist(), expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-5)
    if not needs_processing(params, len(output)):
        assert torch.equal(before, logits)


def test_a_row_of_a_draft_equals_the_plain_row_after_the_same_tokens() -> None:
    params = SamplingParams(
        presence_penalty=0.7, frequency_penalty=0.3, repetition_penalty=1.2, min_tokens=4
    )
    prompt, output, draft = [1, 2], [2, 5], [5, 9, 2]
    logits = torch.randn(4, VOCAB_SIZE)
    together = apply_processors(logits.clone(), params, prompt, output, draft, [0])
    for j in range(4):
        alone = logits[j : j + 1].clone()
        apply_processors(alone, params, prompt, output + draft[:j], [], [0])
        assert torch.equal(alone[0], together[j])


def test_rows_of_a_packed_batch_are_changed_where_they_lie() -> None:
    packed = torch.zeros(6, VOCAB_SIZE)
    apply_processors(packed[2:4], SamplingParams(logit_bias={4: 1.5}), [], [], [1])
    assert packed[:, 4].tolist() == [0.0, 0.0, 1.5, 1.5, 0.0, 0.0]
    assert packed.count_nonzero() == 2


def test_a_drafter_with_fewer_rows_than_tokens_is_served() -> None:
    params = SamplingParams(frequency_penalty=1.0)
    logits = torch.zeros(2, VOCAB_SIZE)
    apply_processors(logits, params, [], [4], [5, 6, 7])
    assert logits[0, 4:8].tolist() == [-1.0, 0.0, 0.0, 0.0]
    assert logits[1, 4:8].tolist() == [-1.0, -1.0, 0.0, 0.0]


def test_token_ids_may_be_tensors_and_logits_half_precision() -> None:
    params = SamplingParams(
        repetition_penalty=2.0, presence_penalty=1.0, logit_bias={0: 3.0}, min_tokens=2
    )
    logits = torch.ones(1, VOCAB_SIZE, dtype=torch.bfloat16)
    prompt, output = torch.tensor([1]), torch.tensor([2])
    apply_processors(logits, params, prompt, output, torch.tensor([], dtype=torch.int64), [5])
    assert logits[0, :6].tolist() == [4.0, 0.5, -0.5, 1.0, 1.0, -float("inf")]


@pytest.mark.parametrize(
    ("params", "num_output_tokens", "needed"),
    [
        ({}, 0, False),
        ({"temperature": 0.5, "top_k": 3, "stop": ("x",)}, 0, False),
        ({"presence_penalty": 0.1}, 9, True),
        ({"repetition_penalty": 1.1}, 9, True),
        ({"logit_bias": {1: 1.0}}, 9, True),
        ({"min_tokens": 3}, 2, True),
        ({"min_tokens": 3}, 3, False),
    ],
)
def test_only_requests_that_ask_for_it_are_processed(
    params: dict[str, Any], num_output_tokens: int, needed: bool
) -> None:
    assert needs_processing(SamplingParams(**params), num_output_tokens) is needed


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"logit_bias": {12: 1.0}}, "logit_bias"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias"),
        ({"stop_token_ids": (3, 99)}, "stop_token_ids"),
    ],
)
def test_a_token_that_the_model_does_not_have_is_refused(
    params: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_vocab(SamplingParams(**params), VOCAB_SIZE)
    assert caught.value.param == field


def test_tokens_that_the_model_has_are_accepted() -> None:
    check_vocab(SamplingParams(logit_bias={0: 1.0, 11: -1.0}, stop_token_ids=(11,)), VOCAB_SIZE)
