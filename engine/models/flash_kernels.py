"""The paged flash kernels there are, each called with a `VarlenPart`; none has been run here yet.

Their packages and GPUs are asked for when an engine starts, never when this file is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from engine.models.attention import PagedContext, sdpa_backend
from engine.models.kv_pool import KvShape
from engine.models.varlen import VarlenPart

# (q [T', Hq, D], keys and values [pages, page_size, Hkv, D], part, scale, window) -> [T', Hq, D]
Kernel = Callable[[Tensor, Tensor, Tensor, VarlenPart, float, tuple[int, int]], Tensor]


@dataclass(frozen=True)
class FlashBackend:
    """An attention backend around a kernel that reads the pages in place."""

    kernel: Kernel

    def __call__(
        self, q: Tensor, layer: int, context: PagedContext, scale: float, window: int | None
    ) -> Tensor:
        """q: [T, Hq, D] -> [T, Hq, D]; one call for the causal spans and one for the blocks.

        The kernels' window looks back from each row and not, as a block does, from its first: where
        a batch has both windows and blocks, SDPA takes it.
        """
        if window is not None and not all(span.is_causal for span in context.batch.spans):
            return sdpa_backend(q, layer, context, scale, window)
        keys, values = context.pool.keys(layer), context.pool.values(layer)
        parts = context.varlen_parts
        if len(parts) == 1:
            (part,) = parts
            return self.kernel(q, keys, values, part, scale, part.window_size(window))
        out = torch.empty_like(q)
        for part in parts:
            size = part.window_size(window)
            out[part.rows] = self.kernel(q[part.rows], keys, values, part, scale, size)
        return out


@dataclass(frozen=True)
class FlashKind:
    """One way to have a kernel: what it asks for, and the page sizes that may suit it."""

    kernel: Kernel
    page_sizes: tuple[int, ...]  # the smallest that it takes first; multiples suit it as well
    package: str | None = None
    compute_capability: int | None = None  # the one major version that it was made for


def flash_3(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    part: VarlenPart,
    scale: float,
    window: tuple[int, int],
) -> Tensor:
    """flash-attn 3 (`flash_attn_interface`, Hopper); pages of any size (its issue 1627)."""
    from flash_attn_interface import flash_attn_with_kvcache

    out: Tensor = flash_attn_with_kvcache(
        q,
        keys,
        values,
        cache_seqlens=part.seqused_k,
        page_table=part.block_table,
        cu_seqlens_q=part.cu_seqlens_q,
        max_seqlen_q=part.max_q,
        softmax_scale=scale,
        causal=part.is_causal,
        window_size=window,
    )
    return out


def flash_2(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    part: VarlenPart,
    scale: float,
    window: tuple[int, int],
) -> Tensor:
    """flash-attn 2; its kernel refuses pages that are no multiple of 256 tokens (issue 828)."""
    from flash_attn import flash_attn_varlen_func

    out: Tensor = flash_attn_varlen_func(
        q,
        keys,
        values,
        cu_seqlens_q=part.cu_seqlens_q,
        cu_seqlens_k=part.cu_seqlens_k,
        max_seqlen_q=part.max_q,
        max_seqlen_k=part.max_k,
        softmax_scale=scale,
        causal=part.is_causal,
        window_size=window,
        block_table=part.block_table,
    )
    return out


def torch_varlen(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    part: VarlenPart,
    scale: float,
    window: tuple[int, int],
) -> Tensor:
    """torch's own `varlen_attn`; where it runs flash-attn 2, paging may be refused or need 256."""
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(
        q,
        keys,
        values,
        part.cu_seqlens_q,
        None,
        part.max_q,
        part.max_k,
        scale=scale,
        window_size=window,
        enable_gqa=q.shape[1] != keys.shape[2],
        seqused_k=part.seqused_k,
        block_table=part.block_table,
    )
    assert isinstance(out, Tensor)  # a pair only where auxiliary outputs are asked for
    return out


FLASH_KINDS: dict[str, FlashKind] = {
    "flash3": FlashKind(flash_3, (16,), "flash_attn_interface", compute_capability=9),
    "varlen": FlashKind(torch_varlen, (16, 256)),
    "flash2": FlashKind(flash_2, (256,), "flash_attn"),
}
"""By name, the best first."""


def unmet_demand(
    kind: FlashKind, device: torch.device, dtype: torch.dtype, shapes: list[KvShape]
) -> str | None:
    """Why a kernel cannot be had on this device for these models; None where only a try can tell.

    All of them want CUDA, half precision, and heads of at most 256 in multiples of 8.
    """
    if device.type != "cuda":
        return f"needs a CUDA device, this is {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"needs bfloat16 or float16, this is {str(dtype).removeprefix('torch.')}"
    layers = {layer for shape in shapes for layer in shape.layers}
    if bad := [n for n in sorted(layer.key_dim for layer in layers) if n > 256 or n % 8]:
        return f"takes heads of at most 256 in multiples of 8, these are {bad[0]}"
    if any(layer.key_dim != layer.value_dim for layer in layers):
        return "takes keys and values of one size only"
    if kind.package is not None and find_spec(kind.package) is None:
        return f"the package {kind.package} is not installed"
    if kind.compute_capability is not None:
        major, minor = torch.cuda.get_device_capability(device)
        if major != kind.compute_capability:
            return f"is made for compute capability {kind.compute_capability}, not {major}.{minor}"
    return None
