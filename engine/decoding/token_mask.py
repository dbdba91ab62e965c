"""Masks of allowed tokens, made on the CPU bit by bit, applied to logits on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_WORD_BYTES = 4
_WORD_BITS = 32


def apply_token_masks(logits: Tensor, rows: Sequence[int], masks: Sequence[bytes]) -> None:
    """Set the logits of refused tokens to -inf, in place.

    logits: [R, V]; masks: one for each of `rows`, a bit a token, the lowest of a byte first, all
    of one length that is a multiple of 4. Tokens beyond the masks are refused.
    """
    if not rows:
        return
    # A row's number travels before its mask, so that the device gets everything at once.
    table = b"".join(
        row.to_bytes(_WORD_BYTES, "little") + mask for row, mask in zip(rows, masks, strict=True)
    )
    words = torch.frombuffer(bytearray(table), dtype=torch.int32).view(len(rows), -1)
    words = words.to(logits.device)
    bits = torch.ones((), dtype=torch.int32, device=logits.device) << torch.arange(
        _WORD_BITS, dtype=torch.int32, device=logits.device
    )
    is_allowed = (words[:, 1:, None] & bits).ne(0).flatten(1)[:, : logits.shape[1]]
    index = words[:, 0].long()
    num_known = is_allowed.shape[1]
    logits[index, :num_known] = logits[index, :num_known].masked_fill(~is_allowed, -torch.inf)
    logits[index, num_known:] = -torch.inf
