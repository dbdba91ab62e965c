"""Loads a verifier and its drafter, and refuses a pair that does not fit."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.models.causal_lm import CausalLM, UnsupportedModelError, load_causal_lm
from engine.models.dflash import DFlashDrafter, load_drafter


def load_pair(
    verifier_path: str, drafter_path: str | None, dtype: torch.dtype, device: torch.device
) -> tuple[CausalLM, DFlashDrafter | None]:
    """Load both; the drafter says which of the verifier's layers it taps."""
    drafter = None if drafter_path is None else _load_drafter(Path(drafter_path), dtype, device)
    taps = drafter.config.target_layer_ids if drafter is not None else ()
    verifier = load_causal_lm(Path(verifier_path), dtype=dtype, device=device, tap_layers=taps)
    return verifier, drafter


def _load_drafter(path: Path, dtype: torch.dtype, device: torch.device) -> DFlashDrafter:
    if not (path / "config.json").is_file():
        raise UnsupportedModelError(f"{path} is no drafter folder: config.json is missing")
    try:
        return load_drafter(path, dtype, device)
    except KeyError as error:
        raise UnsupportedModelError(
            f"{path} holds no DFlash drafter: its config.json has no {error}"
        ) from error


def check_pair(verifier: CausalLM, drafter: DFlashDrafter | None, num_tokens: int) -> None:
    """Raise `UnsupportedModelError` where tokenizer, verifier and drafter do not fit together."""
    if num_tokens > verifier.vocab_size:
        raise UnsupportedModelError(
            f"the tokenizer has {num_tokens} tokens, the verifier only {verifier.vocab_size}"
        )
    if drafter is None:
        return
    own = drafter.config
    pairs = {
        "vocab_size": (own.vocab_size, verifier.vocab_size),
        "hidden_size": (own.hidden_size, verifier.hidden_size),
        "num_target_layers": (own.num_target_layers, verifier.kv_shape.num_layers),
    }
    for name, (drafter_has, verifier_has) in pairs.items():
        if drafter_has != verifier_has:
            raise UnsupportedModelError(
                f"this drafter was made for another verifier: {name} is {drafter_has}, "
                f"the verifier's is {verifier_has}"
            )
