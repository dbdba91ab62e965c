"""Bits to logits: what a mask refuses, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch

from engine.decoding.token_mask import apply_token_masks


def pack(allowed: set[int], num_bytes: int) -> bytes:
    mask = bytearray(num_bytes)
    for token_id in allowed:
        mask[token_id // 8] |= 1 << token_id % 8
    return bytes(mask)


@pytest.mark.parametrize("vocab_size", [20, 32, 33, 64, 70, 100])
def test_rows_keep_the_tokens_that_their_masks_allow(vocab_size: int) -> None:
    logits = torch.randn(5, vocab_size)
    before = logits.clone()
    wanted = [{0, 7, 8, 19}, {31, 32, 63}, set()]
    apply_token_masks(logits, [3, 0, 4], [pack(allowed, 8) for allowed in wanted])
    for row, allowed in zip([3, 0, 4], wanted, strict=True):
        kept = (logits[row] > -torch.inf).nonzero().flatten().tolist()
        assert set(kept) == {token_id for token_id in allowed if token_id < vocab_size}
        assert torch.equal(logits[row, kept], before[row, kept])
    assert torch.equal(logits[1:3], before[1:3])


def test_without_rows_nothing_happens() -> None:
    logits = torch.ones(2, 4)
    apply_token_masks(logits, [], [])
    assert torch.equal(logits, torch.ones(2, 4))
