"""The verifier as a drafter's training sees it: any causal LM of transformers, unchanged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.causal_lm import UnsupportedModelError

_CHECK_TOKENS = 8


@dataclass(frozen=True)
class Reading:
    """What the verifier made of token ids [B, L]: the drafter's context, and its last hidden."""

    token_ids: Tensor
    tapped: Tensor  # [B, L, taps * H]
    hidden: Tensor  # [B, L, H], after the final norm


class FrozenVerifier:
    """Embedding, hidden states and output head of a model whose weights stay as they are.

    `embed` and `head` are what the server gives a drafter, bare embeddings and bare logits;
    `target_logits` is the distribution that the drafter is judged by. All of them take and give
    float32, whatever the model's own weights are.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.requires_grad_(False).eval()
        self.config: Any = model.config.get_text_config()
        self._check_target_logits()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    @property
    def logit_scale(self) -> float:
        """What the model multiplies its head's output by: Cohere says so, Granite divides."""
        times = getattr(self.config, "logit_scale", None) or 1.0
        over = getattr(self.config, "logits_scaling", None) or 1.0
        return float(times) / float(over)

    @torch.no_grad()
    def read(self, token_ids: Tensor, taps: tuple[int, ...]) -> Reading:
        """One forward over rows [B, L] that all begin at position 0; padding goes to the right.

        Tap i is what decoder layer i puts out, counted from 0. It is taken by a hook, as the server
        does: the list that a model returns holds its last layer only after the final norm.
        """
        decoder, kept = self.model.get_decoder(), dict[int, Tensor]()
        hooks = [decoder.layers[i].register_forward_hook(_keep(kept, i)) for i in taps]
        try:
            hidden = decoder(input_ids=token_ids, use_cache=False).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        tapped = torch.cat([kept[i] for i in taps], dim=-1)
        return Reading(token_ids, tapped.float(), hidden.float())

    @torch.no_grad()
    def embed(self, token_ids: Tensor) -> Tensor:
        """The bare embeddings, as in z-lab's loader: [N] -> [N, H]"""
        return F.embedding(token_ids, self.model.get_input_embeddings().weight).float()

    def head(self, hidden: Tensor) -> Tensor:
        """The output head alone, as a drafter is served with it: hidden [..., H] -> [..., V]"""
        head = self.model.get_output_embeddings()
        return head(hidden.to(head.weight.dtype)).float()  # type: ignore[no-any-return]

    def target_logits(self, hidden: Tensor) -> Tensor:
        """The verifier's own logits: final hidden [..., H] -> [..., V], scaled and capped."""
        logits = self.head(hidden) * self.logit_scale
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @torch.no_grad()
    def _check_target_logits(self) -> None:
        """Refuse a model that makes more of its last hidden states than `target_logits` knows."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.config.vocab_size, (1, _CHECK_TOKENS), generator=generator)
        ids = ids.to(self.device)
        hidden = self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        own = self.model(input_ids=ids, use_cache=False).logits.float()
        difference = (self.target_logits(hidden) - own).abs().max() / own.abs().max()
        limit = 1e-3 if hidden.dtype is torch.float32 else 6e-2
        if not bool(difference <= limit):
            raise UnsupportedModelError(
                f"model_type {self.config.model_type}: its logits are more than its output head, "
                f"scale and soft cap (they differ by {float(difference):.2e} of the largest), so a "
                "drafter would be taught another distribution than the model's"
            )


def _keep(kept: dict[int, Tensor], index: int) -> Callable[..., None]:
    def keep(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        kept[index] = output if isinstance(output, Tensor) else output[0]

    return keep
