"""The verifier as a drafter's training sees it: any causal LM of transformers, unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reading:
    """What the verifier made of token ids [B, L]: the drafter's context, and its last hidden."""

    token_ids: Tensor
    tapped: Tensor  # [B, L, taps * H]
    hidden: Tensor  # [B, L, H], after the final norm


class FrozenVerifier:
    """Embedding, hidden states and output head of a model whose weights stay as they are."""

    def __init__(self, model: Any) -> None:
        self.model = model.requires_grad_(False).eval()
        self.config: Any = model.config.get_text_config()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    @torch.no_grad()
    def read(self, token_ids: Tensor, taps: tuple[int, ...]) -> Reading:
        """One forward over rows [B, L] that all begin at position 0; padding goes to the right.

        Tap i is the hidden state after decoder layer i, counted from 0.
        """
        decoder = self.model.get_decoder()
        out = decoder(input_ids=token_ids, use_cache=False, output_hidden_states=True)
        tapped = torch.cat([out.hidden_states[i + 1] for i in taps], dim=-1)
        return Reading(token_ids, tapped, out.last_hidden_state)

    @torch.no_grad()
    def embed(self, token_ids: Tensor) -> Tensor:
        """[N] -> [N, H]"""
        return self.model.get_input_embeddings()(token_ids)  # type: ignore[no-any-return]

    def head(self, hidden: Tensor) -> Tensor:
        """The output head alone: final hidden [..., H] -> logits [..., V]"""
        return self.model.get_output_embeddings()(hidden)  # type: ignore[no-any-return]
