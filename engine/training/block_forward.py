"""One forward of a causal LM over clean rows and many diffusion blocks of them at once."""

from typing import Any

import torch
from torch import Tensor

from engine.training.blocks import visible


def read_blocks(
    model: Any, token_ids: Tensor, anchors: Tensor, blocks: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows [B, L], anchors [B, A], blocks [B, A, N] -> hidden [B, L, H] and [B, A, N, H].

    A block is read as its anchor, the last clean token, and the N tokens after it. Row i predicts
    token i + 1, as in Dream (arXiv 2508.15487) and Fast-dLLM v2 (arXiv 2509.26328), so that the
    hidden state n of a block is that of the row before token n: its last row predicts nothing.
    """
    (B, L), (_, A, N) = token_ids.shape, blocks.shape
    device = token_ids.device
    rows = torch.cat((token_ids.gather(1, anchors)[..., None], blocks), dim=2)
    positions = anchors[..., None] + torch.arange(N + 1, device=device)
    clean = torch.arange(L, device=device).expand(B, L)
    out = model.model(
        input_ids=torch.cat((token_ids, rows.flatten(1)), dim=1),
        position_ids=torch.cat((clean, positions.flatten(1)), dim=1),
        attention_mask=clean_and_blocks(anchors, L, N + 1)[:, None],
        use_cache=False,
    )
    hidden: Tensor = out.last_hidden_state
    return hidden[:, :L], hidden[:, L:].view(B, A, N + 1, -1)[:, :, :N]


def clean_and_blocks(anchors: Tensor, length: int, size: int) -> Tensor:
    """anchors [B, A] -> [B, L + A * K, L + A * K]: which row sees which (True).

    BD3-LM's mask (arXiv 2503.09573, section 3.1) with a token-causal context, as TiDAR (arXiv
    2511.08923) has it: clean rows are those of a plain causal LM, so that their keys and values
    are a function of the prefix and a block may begin anywhere.
    """
    B, A = anchors.shape
    causal = torch.ones(length, length, dtype=torch.bool, device=anchors.device).tril()
    no_block = causal.new_zeros(length, A * size)
    clean = torch.cat((causal, no_block), dim=1).expand(B, -1, -1)
    return torch.cat((clean, visible(anchors, length, size)), dim=1)
