"""The modes as Python objects: a diffusion model, an AR model, a tokenizer in; texts out.

Each is a whole engine with one default mode, without HTTP or Redis. Which strategy does the work is
said by `default_mode` alone; every other mode that the models allow can be asked for, too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from engine.base import BaseConfig, BaseStats
from engine.build import EngineConfig, build_engine
from engine.dfastllm_engine import Completion, DFastLLMEngine
from engine.entropy_controller import EntropyConfig
from engine.request.options import NO_OPTIONS, Acceptance, GenerationOptions, Remasking
from engine.request.sampling_params import SamplingParams

ModelPath = str | Path


@dataclass(frozen=True)
class HybridConfig(BaseConfig):
    """How to generate where a call says nothing else; None leaves a choice to the strategy."""

    draft_length: int | None = None  # None: the planner decides each step
    max_draft_length: int = 15
    acceptance: str = "coupled"  # or "rejection"
    denoising_steps: int | None = None
    block_length: int | None = None
    confidence_threshold: float | None = None
    remasking: str = "low_confidence"
    max_batch_size: int = 16
    max_model_len: int | None = None
    prefix_cache: bool = True
    device: str = "auto"
    dtype: str = "auto"
    entropy: EntropyConfig | None = None  # cut drafts where their own logits are uncertain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        entropy = values.get("entropy")
        if isinstance(entropy, Mapping):
            values = {**values, "entropy": EntropyConfig.from_dict(entropy)}
        return super().from_dict(values)

    def validate(self) -> None:
        """Raise ValueError naming the first field that cannot be meant."""
        for name, known in (("acceptance", Acceptance), ("remasking", Remasking)):
            if getattr(self, name) not in set(known):
                raise ValueError(f"{name} must be one of {', '.join(known)}")
        self.options()
        self.engine_config()

    def options(self) -> GenerationOptions:
        """The part that concerns the strategies."""
        return GenerationOptions(
            draft_length=self.draft_length,
            acceptance=Acceptance(self.acceptance),
            denoising_steps=self.denoising_steps,
            block_length=self.block_length,
            confidence_threshold=self.confidence_threshold,
            remasking=Remasking(self.remasking),
        )

    def engine_config(self) -> EngineConfig:
        """The part that concerns models and memory, still without a model."""
        return EngineConfig(
            max_draft_length=self.max_draft_length,
            max_batch_size=self.max_batch_size,
            max_model_len=self.max_model_len,
            prefix_cache=self.prefix_cache,
            device=self.device,
            dtype=self.dtype,
            options=self.options(),
            entropy=self.entropy,
        )


@dataclass
class HybridStats(BaseStats):
    """What `generate` has done since the last reset, all of it counted or timed."""

    num_sequences: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_verify_forwards: int = 0
    num_draft_forwards: int = 0
    num_denoise_forwards: int = 0
    elapsed_s: float = 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted share of the drafted tokens; 0 before the first draft."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Output tokens over the time spent in `generate`; 0 before the first call."""
        return self.num_output_tokens / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def tokens_per_forward(self) -> float:
        """Output tokens over forwards of all models; a batch shares its forwards."""
        forwards = self.num_verify_forwards + self.num_draft_forwards + self.num_denoise_forwards
        return self.num_output_tokens / forwards if forwards else 0.0


class HybridEngine:
    """DEER: the diffusion model drafts, the AR model keeps what it would have written itself."""

    default_mode: ClassVar[str] = "deer"

    def __init__(
        self,
        diffusion_model: ModelPath | None = None,
        ar_model: ModelPath | None = None,
        tokenizer: ModelPath | None = None,
        config: HybridConfig | None = None,
    ) -> None:
        """Folders in Hugging Face format; without any of them the models that ship are used.

        `diffusion_model` is a drafter of the DFlash kind or a diffusion LM, `ar_model` any causal
        LM; a tokenizer is looked for beside the AR model. Raises `UnsupportedModelError` where the
        models do not fit together or do not allow the mode.
        """
        self.config = config or HybridConfig()
        self.stats = HybridStats()
        names = [None if path is None else str(path) for path in (ar_model, diffusion_model)]
        verifier, diffusion = names
        engine_config = replace(
            self.config.engine_config(),
            model_path=verifier or diffusion,
            drafter_path=diffusion if verifier else None,
            tokenizer_path=None if tokenizer is None else str(tokenizer),
            default_mode=self.default_mode,
        )
        self.engine: DFastLLMEngine = build_engine(engine_config)

    def generate(
        self,
        prompts: Seq[str],
        params: SamplingParams | None = None,
        *,
        mode: str | None = None,
        options: GenerationOptions = NO_OPTIONS,
    ) -> list[str]:
        """Complete a batch of prompts and return the texts, in order."""
        return [c.text for c in self.complete(prompts, params, mode=mode, options=options)]

    def complete(
        self,
        prompts: Seq[str],
        params: SamplingParams | None = None,
        *,
        mode: str | None = None,
        options: GenerationOptions = NO_OPTIONS,
    ) -> list[Completion]:
        """Like `generate`, with token ids, finish reasons and counts beside the texts."""
        before = self.engine.metrics()
        started = time.perf_counter()
        done = self.engine.complete(prompts, params, mode=mode, options=options)
        self.stats.elapsed_s += time.perf_counter() - started
        self._count(done, before)
        return done

    def get_stats(self) -> dict[str, Any]:
        return self.stats.to_dict()

    def reset_stats(self) -> None:
        self.stats.reset()

    def _count(self, done: Seq[Completion], before: dict[str, float]) -> None:
        after, stats = self.engine.metrics(), self.stats
        for name in ("num_verify_forwards", "num_draft_forwards", "num_denoise_forwards"):
            counted = getattr(stats, name) + int(after[name] - before[name])
            setattr(stats, name, counted)
        for summary in (completion.summary for completion in done):
            stats.num_sequences += 1
            stats.num_prompt_tokens += summary.num_prompt_tokens
            stats.num_output_tokens += summary.num_output_tokens
            stats.num_draft_tokens += summary.num_draft_tokens
            stats.num_accepted_tokens += sum(
                length * steps for length, steps in enumerate(summary.acceptance_histogram)
            )


class SpecDiffEngine(HybridEngine):
    """Several denoising steps a draft, AR verify: the tokens of the AR model."""

    default_mode = "spec_diff"


class SemiAREngine(HybridEngine):
    """The diffusion model alone, block after block from left to right."""

    default_mode = "semi_ar"


class APDDecoder(HybridEngine):
    """Adaptive parallel decoding: the diffusion model's tokens, as far as the AR model goes along.

    Lossy: its output is neither model's own.
    """

    default_mode = "apd"
