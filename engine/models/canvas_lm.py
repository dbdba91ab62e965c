"""DiffusionGemma on paged attention: one set of weights that reads causally and denoises both ways.

As transformers has it (5.23, models/diffusion_gemma): an encoder reads the text token by token, as
Gemma 4 does; the same layers, as a decoder, denoise a canvas of `canvas_length` random tokens
(there is no mask token) that sees all of the text and of itself, in sliding layers only the last
`window - 1` tokens of the text; each pass is told the logits of the pass before, as soft embeddings
(self-conditioning). What a canvas leaves in the pages lasts only until the encoder reads its final
tokens. No strategy drives this model yet: all of ours fill in mask tokens, and the rows of the seam
carry no logits of an earlier pass. So `load_diffusion_lm` refuses it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion

from engine.models.attention import Backend, PagedContext
from engine.models.causal_lm import kv_shape
from engine.models.kv_pool import KvPool, KvShape
from engine.models.packing import PackedBatch
from engine.models.pretrained import pretrained


class CanvasLM:
    """Reads text into pages, and denoises canvases that see them; text alone, no images."""

    def __init__(self, model: Any) -> None:
        self.model = model
        config: Any = model.config
        self.vocab_size: int = config.text_config.vocab_size
        self.max_positions: int = config.text_config.max_position_embeddings
        self.canvas_length: int = config.canvas_length
        self.kv_shape = kv_shape(config.text_config)
        self._masks = dict.fromkeys(config.text_config.layer_types)  # none is to be built

    @property
    def device(self) -> torch.device:
        return self.model.lm_head.weight.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        return self.model.lm_head.weight.dtype  # type: ignore[no-any-return]

    def read(self, batch: PackedBatch, pool: KvPool, backend: Backend) -> None:
        """Write the keys and values of causal rows of text."""
        self.model.model.encoder.language_model(
            input_ids=batch.token_ids[None],
            position_ids=batch.positions[None],
            attention_mask=self._masks,
            past_key_values=_NoCache(self.kv_shape, pool),
            paged=PagedContext(batch, pool, backend),
        )

    def denoise(
        self,
        batch: PackedBatch,
        pool: KvPool,
        backend: Backend,
        conditioning: Tensor | None = None,
    ) -> Tensor:
        """Logits [T, V] of canvases, each a span that sees all up to its own end.

        `conditioning` [T, V] are the logits of the pass before; None for all canvases' first.
        """
        decoder: Any = self.model.model.decoder
        hidden = decoder(
            decoder_input_ids=batch.token_ids[None],
            decoder_position_ids=batch.positions[None],
            decoder_attention_mask=self._masks,
            self_conditioning_logits=None if conditioning is None else conditioning[None],
            past_key_values=_NoCache(self.kv_shape, pool),
            paged=PagedContext(batch, pool, backend),
        ).last_hidden_state[0]
        cap: float = self.model.final_logit_softcapping
        return cap * torch.tanh(self.model.lm_head(hidden).float() / cap)


class _NoCache:
    """What transformers takes for an empty cache: our pages hold what it would."""

    is_compileable = False

    def __init__(self, shape: KvShape, pool: KvPool) -> None:
        self.layers = [_Nothing(pool, layer) for layer in range(shape.num_layers)]

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        return keys, values


class _Nothing:
    """The empty keys and values [1, Hkv, 0, D] of one layer, to which a canvas appends its own."""

    def __init__(self, pool: KvPool, layer: int) -> None:
        self.keys, self.values = (
            pages[:1, :0].transpose(1, 2) for pages in (pool.keys(layer), pool.values(layer))
        )


def load_canvas_lm(path: Path, *, dtype: torch.dtype, device: torch.device) -> CanvasLM:
    """Load a folder of model_type diffusion_gemma; its vision tower is loaded, but never asked."""
    what = f"{path} (model_type diffusion_gemma)"
    source = DiffusionGemmaForBlockDiffusion
    return CanvasLM(pretrained(path, what, dtype=dtype, device=device, model_class=source))
