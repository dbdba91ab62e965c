"""What a run has made so far, as a model card looks at it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import Qwen3ForCausalLM

from engine.models.dflash import DFlashDrafter, load_drafter
from engine.training.frozen_verifier import FrozenVerifier
from engine.training.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Trained:
    """An output folder: a verifier, and what else there is by now."""

    out: Path
    tokenizer: Tokenizer
    verifier: FrozenVerifier
    drafter: DFlashDrafter | None
    diffusion: Any | None  # a causal LM of transformers

    @cached_property
    def figures(self) -> dict[str, Any]:
        """What has been measured; empty where nothing was."""
        return _read(self.out / "evaluation.json")

    @cached_property
    def comparison(self) -> dict[str, Any]:
        found: dict[str, Any] = _read(self.out / "run" / "compare" / "comparison.json")
        drafters: dict[str, Any] = found.get("drafters", {})
        return drafters

    def facts(self, stage: str) -> dict[str, Any]:
        """Steps, tokens, seconds, options and preset of a finished training; else empty."""
        return _read(self.out / "run" / f"{stage}.json")


def load_trained(out: Path, device: torch.device) -> Trained:
    """Everything as saved, bfloat16 rounding and all, to be computed in float32."""
    drafter, diffusion = out / "drafter", out / "diffusion"
    return Trained(
        out,
        load_tokenizer(out / "verifier"),
        FrozenVerifier(_load_causal_lm(out / "verifier", device)),
        load_drafter(drafter, torch.float32, device) if _is_model(drafter) else None,
        _load_causal_lm(diffusion, device) if _is_model(diffusion) else None,
    )


def _is_model(folder: Path) -> bool:
    return (folder / "model.safetensors").exists()


def _load_causal_lm(folder: Path, device: torch.device) -> Any:
    model: torch.nn.Module = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.to(device).eval()


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return found
