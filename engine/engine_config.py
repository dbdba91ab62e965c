"""What to serve and how much of it at once, and what "auto" means on this machine."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from engine.entropy_controller import EntropyConfig
from engine.models.checkpoint import folder_digest
from engine.models.cpu_dtype import are_served_in_bfloat16
from engine.models.diffusion_lm import is_diffusion_lm
from engine.request.options import GenerationOptions

EMBEDDED = Path(__file__).parent / "weights"
EMBEDDED_NAME = "dfastllm-embedded"

DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class EngineConfig:
    """What to serve, and how much of it at once."""

    model_path: str | None = None  # the verifier, or a lone diffusion model; None: shipped
    drafter_path: str | None = None  # a drafter for that verifier, or a diffusion model
    diffusion_path: str | None = None  # a diffusion model beside a drafter
    tokenizer_path: str | None = None  # None: beside the model
    model_name: str | None = None  # None: the folder's name
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "auto"  # or flash, flash3, varlen, flash2, sdpa
    max_model_len: int | None = None  # None: what the model was trained for
    max_batch_size: int = 16
    max_step_tokens: int | None = None
    page_size: int | None = None  # None: what suits the attention, 16 where all do
    kv_memory_bytes: int | None = None
    default_mode: str | None = None  # None: deer where something drafts, else what there is
    disabled_modes: frozenset[str] = frozenset()  # not offered, whatever the models allow
    max_draft_length: int = 15
    prefix_cache: bool = True
    host_cache_bytes: int = 0  # for pages that the device has forgotten
    self_test: bool = True
    compile: bool = False  # through torch.compile, once at the start
    use_8bit: bool = False  # weights in int8, activations too while they are multiplied
    num_threads: int | None = None
    """Of forwards on a CPU; torch's own number is set by it. None: as many as torch has."""
    cpu_kernels: bool = True  # whole forwards in machine code, on CPUs, for models that they know
    options: GenerationOptions = field(default_factory=GenerationOptions)
    """What a request that says nothing gets."""
    entropy: EntropyConfig | None = None
    """From which entropies on drafts are cut and paced; None: acceptance so far decides alone."""

    def __post_init__(self) -> None:
        names = ("max_batch_size", "page_size", "max_draft_length", "max_model_len")
        for name in (*names, "max_step_tokens", "kv_memory_bytes", "num_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")

    @property
    def folders(self) -> list[str]:
        """Every folder that the output depends on."""
        named = (*self.model_folders, self.tokenizer_path)
        return [folder for folder in named if folder]

    @property
    def model_folders(self) -> list[str]:
        named = (self.model_path, self.drafter_path, self.diffusion_path)
        return [folder for folder in named if folder]

    @property
    def wants_kernels(self) -> bool:
        """Whether the CPU kernels are to run what they can; the device must be resolved."""
        is_other = self.compile or self.use_8bit
        return self.device == "cpu" and self.cpu_kernels and not is_other


def resolve(config: EngineConfig) -> EngineConfig:
    """Replace every "auto" by what this machine has, and tell the models' kinds apart."""
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    config = _sort_models(replace(config, device=device))
    return replace(config, dtype=_best_dtype(config)) if config.dtype == "auto" else config


def _best_dtype(config: EngineConfig) -> str:
    """On CPUs bfloat16 only where the kernels multiply in it: torch's products in it are slow."""
    if config.device != "cpu":
        return "bfloat16"
    folders = [Path(folder) for folder in config.model_folders]
    fits = config.wants_kernels and are_served_in_bfloat16(folders, config.page_size)
    return "bfloat16" if fits else "float32"


def _sort_models(config: EngineConfig) -> EngineConfig:
    if config.model_path is None and config.diffusion_path is None:
        return replace(
            config,
            model_path=str(EMBEDDED / "verifier"),
            drafter_path=config.drafter_path or str(EMBEDDED / "drafter"),
            diffusion_path=str(EMBEDDED / "diffusion"),
            model_name=config.model_name or EMBEDDED_NAME,
        )
    drafter, alone = config.drafter_path, config.model_path
    if drafter is not None and is_diffusion_lm(Path(drafter)):
        config = replace(config, drafter_path=None, diffusion_path=drafter)
    elif alone is not None and config.diffusion_path is None and is_diffusion_lm(Path(alone)):
        config = replace(config, model_path=None, diffusion_path=alone)
    return config


def fingerprint(config: EngineConfig, *, uses_kernels: bool) -> str:
    """Equal for two workers only where a rerun on the other gives the same tokens."""
    digest = hashlib.blake2b(digest_size=12)
    for folder in config.folders:
        digest.update(folder_digest(Path(folder)))
    options = replace(config.options, draft_length=None)  # which no token hangs on
    modes = [config.default_mode, repr(options)]
    chosen = [config.dtype, config.device, config.compile, config.use_8bit, *modes]
    chosen.append(uses_kernels)
    digest.update(json.dumps(chosen).encode())
    return digest.hexdigest()
