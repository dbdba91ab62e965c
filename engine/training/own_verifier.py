"""Somebody's own verifier: loaded as the server would load it, or refused before any training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.models.attention import sdpa_backend
from engine.models.causal_lm import CausalLM, UnsupportedModelError, load_causal_lm
from engine.models.loader import check_pair
from engine.models.model_runner import ModelRunner
from engine.models.self_test import check_against_eager
from engine.request.tokenizer import Tokenizer
from engine.training.frozen_verifier import FrozenVerifier


class OptionError(ValueError):
    """A flag that cannot be meant; the message begins with its name."""


@dataclass(frozen=True)
class OwnVerifier:
    """A model that the server can run, with the tokenizer that the server gives it."""

    served: CausalLM
    frozen: FrozenVerifier
    tokenizer: Tokenizer

    @property
    def config(self) -> Any:
        return self.frozen.config


def load_own_verifier(path: str, device: torch.device) -> OwnVerifier:
    """Load a checkpoint folder; raises OptionError where the server could not run it."""
    # On CPUs without bf16 units, bf16 matrix products are several times slower than fp32.
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        served = load_causal_lm(Path(path), dtype=dtype, device=device)
        # SDPA: what its answer decides is whether the server can compute the attention at all.
        runner = ModelRunner(served, None, num_pages=4, page_size=16, backend=sdpa_backend)
        check_against_eager(runner)
        tokenizer = Tokenizer(path)
        check_pair(served, None, tokenizer.vocab_size)
        _use_own_attention(served.model)
        return OwnVerifier(served, FrozenVerifier(served.model), tokenizer)
    except (UnsupportedModelError, ValueError, OSError) as error:
        raise OptionError(f"--verifier: {error}") from error


def _use_own_attention(model: Any) -> None:
    """Away from paged attention, which training has no pages for."""
    caps = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    try:
        # transformers' sdpa leaves a soft cap out, and says nothing.
        model.set_attn_implementation("eager" if caps else "sdpa")
    except ValueError:  # not every model has it
        model.set_attn_implementation("eager")


def find_mask_token(verifier: OwnVerifier, given: int | None) -> int:
    """The id that stands for "not known yet" in a block; its embedding must not be nothing.

    A row of zeros would be a query of zeros, equal at every position of the block.
    """
    table = verifier.frozen.model.get_input_embeddings().weight
    own = verifier.tokenizer.mask_token_id
    candidates: Iterable[int] = range(verifier.tokenizer.vocab_size, len(table))
    if given is not None:
        candidates = [given]
    elif own is not None:
        candidates = [own]
    for token_id in candidates:
        if 0 <= token_id < len(table) and bool(table[token_id].any()):
            return token_id
    if given is not None:
        raise OptionError(
            f"--mask-token-id {given}: the verifier has embeddings for ids 0 to {len(table) - 1}, "
            "and this must be one of them that is not all zeros"
        )
    raise OptionError(
        "--mask-token-id is needed: this tokenizer has no usable mask token, and the verifier no "
        "embedding beyond the tokenizer's ids; give the id of a token that never occurs in your "
        "texts, such as a reserved or unused special token"
    )
