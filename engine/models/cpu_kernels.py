"""The door to the CPU kernels: opened where numba is installed and the models are of their kind."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq
from importlib.util import find_spec
from typing import Protocol

from torch import Tensor

from engine.decoding.noise import gumbel
from engine.decoding.noise_cache import Gumbel
from engine.models.causal_lm import CausalLM
from engine.models.dflash import DFlashDrafter
from engine.models.diffusion_lm import DiffusionLM
from engine.models.packing import Span

logger = logging.getLogger("dfastllm.engine")


class CpuKernels(Protocol):
    """Forwards of all models of an engine, as `ModelRunner` has them."""

    @property
    def num_bytes(self) -> int: ...

    def verify(self, spans: Seq[Span], logit_rows: Seq[int]) -> Tensor: ...

    def draft(self, blocks: Seq[Span], lengths: Seq[int]) -> Tensor: ...

    def draw_chained(
        self, scores: Tensor, lengths: Seq[int], anchors: Seq[int]
    ) -> list[list[int]]: ...

    def denoise(self, spans: Seq[Span], logit_rows: Seq[int]) -> Tensor: ...


def kernel_gumbel() -> Gumbel:
    """`decoding.noise.gumbel`, by a kernel where numba is installed: equal to it bit for bit."""
    if find_spec("numba") is None:
        return gumbel
    from engine.models.cpu.noise import gumbel as by_kernel

    return by_kernel


def cpu_kernels(
    verifier: CausalLM | None,
    drafter: DFlashDrafter | None,
    diffusion: DiffusionLM | None,
    num_pages: int,
    page_size: int,
    num_threads: int,
) -> CpuKernels | None:
    """Kernels that have taken the models' weights over; None where they cannot run all of them."""
    if find_spec("numba") is None:
        logger.info("numba is not installed: models run operator by operator")
        return None
    try:
        from engine.models.cpu.runner import KernelRunner, why_not
    except ImportError as error:  # numba refuses a NumPy that is newer than it knows
        logger.info("no CPU kernels: %s", error)
        return None
    reason = why_not(verifier, drafter, diffusion, page_size)
    if reason is not None:
        logger.info("no CPU kernels: %s", reason)
        return None
    return KernelRunner(verifier, drafter, diffusion, num_pages, page_size, num_threads)
