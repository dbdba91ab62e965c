"""Loads verifier, drafter and diffusion model, and refuses those that do not fit together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from engine.models.canvas_lm import CanvasLM, is_canvas_lm, load_canvas_lm
from engine.models.causal_lm import CausalLM, UnsupportedModelError, load_causal_lm
from engine.models.checkpoint import read_config
from engine.models.dflash import DFlashDrafter, load_drafter
from engine.models.diffusion_lm import DiffusionLM, load_diffusion_lm
from engine.models.kv_pool import KvShape
from engine.models.vocabulary import check_same_tokens


@dataclass(frozen=True)
class Models:
    """What one engine runs: a verifier, a diffusion model, or both, and perhaps a drafter."""

    verifier: CausalLM | None
    drafter: DFlashDrafter | None
    diffusion: DiffusionLM | None
    canvas: CanvasLM | None = None
    """A diffusion model without masks, in the place of the other."""

    @property
    def denoiser(self) -> CausalLM | CanvasLM | None:
        return self.canvas if self.diffusion is None else self.diffusion.backbone

    @property
    def first(self) -> CausalLM | CanvasLM:
        """The one that device, dtype and limits are read off."""
        model = self.verifier or self.denoiser
        assert model is not None, "there must be a model to run"
        return model

    @property
    def max_positions(self) -> int:
        """The longest text that all of them can read."""
        read_by = [model for model in (self.verifier, self.denoiser) if model is not None]
        return min(model.max_positions for model in read_by)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What holds parameters, by the name of its part."""
        found: dict[str, nn.Module] = {}
        if self.verifier is not None:
            found["verifier"] = self.verifier.model
        if self.drafter is not None:
            found["drafter"] = self.drafter
        if self.denoiser is not None:
            found["diffusion model"] = self.denoiser.model
        return found

    @property
    def paged_shapes(self) -> list[KvShape]:
        """Of the pools that paged attention reads; the drafter's own blocks always take SDPA."""
        models = (self.verifier, self.denoiser)
        return [model.kv_shape for model in models if model is not None]

    @property
    def kv_shapes(self) -> list[KvShape]:
        """Of every pool that a page has room in."""
        drafter = [] if self.drafter is None else [self.drafter.config.kv_shape]
        return self.paged_shapes + drafter


def load_models(
    verifier_path: str | None,
    drafter_path: str | None,
    diffusion_path: str | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Models:
    """Load what is named; raises `UnsupportedModelError` where a folder holds something else."""
    diffusion = canvas = None
    if diffusion_path is not None and verifier_path is not None:
        check_same_tokens(Path(diffusion_path), Path(verifier_path))
    if diffusion_path is not None and is_canvas_lm(Path(diffusion_path)):
        canvas = load_canvas_lm(Path(diffusion_path), dtype=dtype, device=device)
    elif diffusion_path is not None:
        diffusion = load_diffusion_lm(Path(diffusion_path), dtype=dtype, device=device)
    verifier = drafter = None
    if verifier_path is not None:
        verifier, drafter = load_pair(verifier_path, drafter_path, dtype, device)
    return Models(verifier, drafter, diffusion, canvas)


def load_pair(
    verifier_path: str, drafter_path: str | None, dtype: torch.dtype, device: torch.device
) -> tuple[CausalLM, DFlashDrafter | None]:
    """Load both; the drafter says which of the verifier's layers it taps."""
    drafter = None
    if drafter_path is not None:
        drafter = _load_drafter(Path(drafter_path), Path(verifier_path), dtype, device)
    taps = drafter.config.target_layer_ids if drafter is not None else ()
    verifier = load_causal_lm(Path(verifier_path), dtype=dtype, device=device, tap_layers=taps)
    return verifier, drafter


def _load_drafter(
    path: Path, verifier_path: Path, dtype: torch.dtype, device: torch.device
) -> DFlashDrafter:
    read_config(path, "drafter")  # so that a folder that is none is named as such first
    check_same_tokens(path, verifier_path)
    own = read_config(verifier_path)
    own = own.get("text_config") or own
    names = {"vocab_size": "vocab_size", "num_hidden_layers": "num_target_layers"}
    verifier = {name: own[key] for key, name in names.items() if key in own}
    try:
        return load_drafter(path, dtype, device, verifier)
    except KeyError as error:
        raise UnsupportedModelError(
            f"{path} holds no DFlash drafter: its config.json has no {error}"
        ) from error


def check_models(models: Models, num_tokens: int) -> None:
    """Raise `UnsupportedModelError` where tokenizer and models do not fit together."""
    if models.verifier is not None:
        check_pair(models.verifier, models.drafter, num_tokens)
    if models.verifier is not None and models.denoiser is not None:
        own, other = models.denoiser.vocab_size, models.verifier.vocab_size
        if own != other:
            raise UnsupportedModelError(
                f"this diffusion model was made for another verifier: vocab_size is {own}, "
                f"the verifier's is {other}"
            )


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
    if not 0 <= own.mask_token_id < own.vocab_size:
        raise UnsupportedModelError(
            f"the drafter's mask_token_id {own.mask_token_id} is none of {own.vocab_size} tokens"
        )
