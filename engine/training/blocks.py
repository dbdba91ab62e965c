"""The drafter over many anchors of a batch at once, with attention as one dense mask."""

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.models.dflash import DFlashDrafter
from engine.training.frozen_verifier import FrozenVerifier, Reading


def block_hidden(
    drafter: DFlashDrafter, verifier: FrozenVerifier, reading: Reading, anchors: Tensor
) -> Tensor:
    """Blocks at anchors [B, A] -> the drafter's final hidden at their masks [B, A, K - 1, H]."""
    size, (B, A) = drafter.config.block_size, anchors.shape
    positions = anchors[:, :, None] + torch.arange(size, device=anchors.device)
    tokens = torch.full_like(positions, drafter.config.mask_token_id)
    tokens[:, :, 0] = reading.token_ids.gather(1, anchors)
    embeds = verifier.embed(tokens.flatten())
    attend = DenseAttention(drafter, reading.tapped, anchors)
    hidden = drafter(embeds, positions.flatten(), attend)
    masks: Tensor = hidden.view(B, A, size, -1)[:, :, 1:]
    return masks


class DenseAttention:
    """`attend` for `DFlashDrafter`: [context of the row; all blocks of the row] under a mask."""

    def __init__(self, drafter: DFlashDrafter, tapped: Tensor, anchors: Tensor) -> None:
        assert drafter.config.is_plain, "windows and causal blocks are for serving alone"
        B, L, _ = tapped.shape
        size = drafter.config.block_size
        self._drafter, self._rows = drafter, B
        self._context = drafter.project_context(tapped.flatten(0, 1))
        self._positions = torch.arange(L, device=tapped.device).repeat(B)
        self._mask = visible(anchors, L, size)[:, None]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        context_k, context_v = self._drafter.context_kv(layer, self._context, self._positions)
        groups = q.shape[1] // k.shape[1]
        keys = torch.cat((self._by_row(context_k), self._by_row(k)), dim=2)
        values = torch.cat((self._by_row(context_v), self._by_row(v)), dim=2)
        mixed = F.scaled_dot_product_attention(
            self._by_row(q),
            keys.repeat_interleave(groups, dim=1),
            values.repeat_interleave(groups, dim=1),
            attn_mask=self._mask,
        )
        return mixed.transpose(1, 2).flatten(0, 1)

    def _by_row(self, x: Tensor) -> Tensor:
        # from (B * T, H, D) to (B, H, T, D)
        return x.view(self._rows, -1, *x.shape[1:]).transpose(1, 2)


def visible(anchors: Tensor, length: int, size: int) -> Tensor:
    """anchors [B, A] -> [B, A * K, L + A * K]: the context before the anchor, and the own block."""
    B, A = anchors.shape
    row_anchor = anchors.repeat_interleave(size, dim=1)
    context = torch.arange(length, device=anchors.device) < row_anchor[:, :, None]
    block = torch.arange(A * size, device=anchors.device) // size
    own = (block[:, None] == block[None, :]).expand(B, -1, -1)
    return torch.cat((context, own), dim=2)
