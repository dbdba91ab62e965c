"""The sampling settings of the running sequences as tensors, made once per set of sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.decoding.noise import MAX_CHOICE
from engine.request.sampling_params import SamplingParams

Entry = tuple[SamplingParams, int, int]
"""Settings, prompt index and choice of one sequence."""

SMALLEST_TEMPERATURE = 1e-30  # float32 keeps it; below, 1/T would not be finite


@dataclass(frozen=True, slots=True)
class SamplingTable:
    """One row a sequence, [S] each. The plain fields spare the sampler a wait for the device."""

    temperature: Tensor  # float32, above 0; greedy rows do not use theirs
    top_p: Tensor  # float32
    top_k: Tensor  # int64; the vocabulary's size and above, as well as 0, mean off
    min_p: Tensor  # float32
    seed: Tensor  # int64: the 64 bits of the seed
    prompt_index: Tensor  # int64
    choice: Tensor  # int64
    is_greedy: Tensor  # bool
    streams: tuple[tuple[int, int, int], ...]  # seed, prompt index and choice once more
    all_greedy: bool
    any_greedy: bool
    any_filter: bool
    any_top_p: bool
    max_top_k: int  # 0 where no sequence has a top_k

    @classmethod
    def build(cls, entries: Sequence[Entry], device: torch.device | str = "cpu") -> SamplingTable:
        all_params = [params for params, _, _ in entries]
        drawn = [params for params in all_params if not params.is_greedy]
        reals = [(p.temperature, p.top_p, p.min_p) for p in all_params]
        streams = [(_as_int64(p.seed), prompt, _checked(choice)) for p, prompt, choice in entries]
        whole = [(p.top_k, *stream) for p, stream in zip(all_params, streams, strict=True)]
        temperature, top_p, min_p = _columns(reals, torch.float32, device)
        top_k, seed, prompt_index, choice = _columns(whole, torch.int64, device)
        is_greedy = torch.tensor([p.is_greedy for p in all_params], device=device)
        any_top_p = any(p.top_p < 1.0 for p in drawn)
        max_top_k = max((p.top_k for p in drawn), default=0)
        return cls(
            temperature=temperature.clamp(min=SMALLEST_TEMPERATURE),
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            seed=seed,
            prompt_index=prompt_index,
            choice=choice,
            is_greedy=is_greedy,
            streams=tuple(streams),
            all_greedy=not drawn,
            any_greedy=len(drawn) < len(all_params),
            any_filter=any_top_p or max_top_k > 0 or any(p.min_p > 0.0 for p in drawn),
            any_top_p=any_top_p,
            max_top_k=max_top_k,
        )


def _columns(
    rows: Sequence[tuple[float, ...]], dtype: torch.dtype, device: torch.device | str
) -> tuple[Tensor, ...]:
    """One transfer to the device for all columns."""
    return torch.tensor(rows, dtype=dtype, device=device).T.contiguous().unbind(0)


def _as_int64(seed: int) -> int:
    """The same 64 bits, signed; seeds beyond 64 bits wrap around."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)


def _checked(choice: int) -> int:
    assert 0 <= choice < MAX_CHOICE, "the choice must fit into its half of a counter word"
    return choice
