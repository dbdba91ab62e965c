"""The door to the CPU kernels: opened where numba is installed and the models are of their kind."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING

from engine.decoding.noise import gumbel
from engine.decoding.noise_cache import Gumbel
from engine.models.causal_lm import CausalLM
from engine.models.dflash import DFlashDrafter
from engine.models.diffusion_lm import DiffusionLM

if TYPE_CHECKING:
    from engine.models.cpu.draws import KernelDraws
    from engine.models.cpu.runner import KernelRunner

logger = logging.getLogger("dfastllm.engine")


def kernel_gumbel() -> Gumbel:
    """`decoding.noise.gumbel`, by a kernel where numba works: equal to it bit for bit."""
    if why_no_numba() is not None:
        return gumbel
    from engine.models.cpu.noise import gumbel as by_kernel

    return by_kernel


def kernel_draws() -> KernelDraws | None:
    """Sampling by kernels; None where numba does not work."""
    if why_no_numba() is not None:
        return None
    from engine.models.cpu import draws

    return draws.KernelDraws()


def cpu_kernels(
    verifier: CausalLM | None,
    drafter: DFlashDrafter | None,
    diffusion: DiffusionLM | None,
    num_pages: int,
    page_size: int,
    num_threads: int,
) -> KernelRunner | None:
    """Kernels that have taken the models' weights over; None where they cannot run all of them."""
    reason = why_no_numba()
    if reason is None:
        from engine.models.cpu.runner import KernelRunner, why_not

        reason = why_not(verifier, drafter, diffusion, page_size)
        if reason is None:
            return KernelRunner(verifier, drafter, diffusion, num_pages, page_size, num_threads)
    logger.info("no CPU kernels: %s", reason)
    return None


def why_no_numba() -> str | None:
    """Why there are no kernels at all here; None where there are."""
    if find_spec("numba") is None:
        return "numba is not installed"
    try:
        import engine.models.cpu.runner  # noqa: F401 it is tried
    except ImportError as error:  # numba refuses a NumPy that is newer than it knows
        return str(error)
    return None
