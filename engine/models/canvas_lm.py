"""DiffusionGemma on paged attention: one set of weights that reads causally and denoises both ways.

As transformers has it (5.23, models/diffusion_gemma): an encoder reads the text token by token, as
Gemma 4 does; the same layers, as a decoder, denoise a canvas of `canvas_length` random tokens
(there is no mask token) that sees all of the text and of itself, in sliding layers only the last
`window - 1` tokens of the text; each pass is told the logits of the pass before, as soft embeddings
(self-conditioning). What a canvas leaves in the pages lasts only until the encoder reads its final
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion

from engine.decoding.entropy_bound import EntropyBound
from engine.models.attention import PAGED_ATTENTION, Backend, PagedContext
from engine.models.causal_lm import kv_shape
from engine.models.checkpoint import read_config
from engine.models.families import CANVAS_TYPE
from engine.models.kv_pool import KvPool, KvShape
from engine.models.packing import PackedBatch, Span, pack
from engine.models.pretrained import pretrained

_ROWS_AT_ONCE = 256  # whose probabilities over the vocabulary are in memory together


@dataclass(frozen=True)
class CanvasConfig:
    """How a canvas model writes: so many random tokens at once, and the rule that settles them."""

    canvas_length: int
    vocab_size: int
    rule: EntropyBound


class CanvasLM:
    """Reads text into pages, and denoises canvases that see them; text alone, no images."""

    def __init__(self, model: Any) -> None:
        self.model = model
        config: Any = model.config
        self.model_type: str = config.model_type
        self.vocab_size: int = config.text_config.vocab_size
        self.max_positions: int = config.text_config.max_position_embeddings
        self.window: int = config.text_config.sliding_window
        self.config = CanvasConfig(
            config.canvas_length, self.vocab_size, _rule(model.generation_config)
        )
        self.kv_shape = kv_shape(config.text_config)
        self._masks = dict.fromkeys(config.text_config.layer_types)  # none is to be built
        self._soft: Tensor | None = None
        model.model.decoder.self_conditioning.register_forward_pre_hook(self._tell)

    @property
    def device(self) -> torch.device:
        return self.model.lm_head.weight.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        return self.model.lm_head.weight.dtype  # type: ignore[no-any-return]

    def forward(
        self, spans: Seq[Span], page_size: int, pool: KvPool, backend: Backend, logit_rows: Tensor
    ) -> Tensor:
        """Read the causal spans, then denoise the others: logits of rows [R] of the pack, [R, V].

        All of these rows must be of canvases.
        """
        texts = [span for span in spans if span.is_causal]
        canvases = [span for span in spans if not span.is_causal]
        if texts:
            self.read(pack(texts, page_size, self.device), pool, backend)
        if not canvases:
            return torch.empty(0, self.vocab_size, device=self.device)
        is_canvas = torch.tensor([not s.is_causal for s in spans for _ in s.token_ids])
        rows = (is_canvas.cumsum(0) - 1).to(self.device)[logit_rows]
        batch = pack(canvases, page_size, self.device)
        return self.denoise(batch, pool, backend, self._feedback(canvases))[rows]

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
        self, batch: PackedBatch, pool: KvPool, backend: Backend, feedback: Tensor | None = None
    ) -> Tensor:
        """Logits [T, V] of canvases, each a span that sees all up to its own end.

        `feedback` [T, H] is what `soften` made of the pass before, 0 for a canvas's first pass.
        """
        decoder: Any = self.model.model.decoder
        self._soft = feedback
        hidden = decoder(
            decoder_input_ids=batch.token_ids[None],
            decoder_position_ids=batch.positions[None],
            decoder_attention_mask=self._masks,
            past_key_values=_NoCache(self.kv_shape, pool),
            paged=PagedContext(batch, pool, backend),
        ).last_hidden_state[0]
        self._soft = None
        cap: float = self.model.final_logit_softcapping
        return cap * torch.tanh(self.model.lm_head(hidden).float() / cap)

    def soften(self, logits: Tensor) -> Tensor:
        """The embeddings that logits [R, V] stand for on average, [R, H]: far less to keep."""
        embed: Any = self.model.model.decoder.embed_tokens
        parts = [
            part.to(self.dtype).softmax(-1, dtype=torch.float32).to(self.dtype) @ embed.weight
            for part in torch.split(logits, _ROWS_AT_ONCE)
        ]
        scale: Tensor = embed.embed_scale
        return torch.cat(parts) * scale.to(self.dtype)

    def eager_logits(self, token_ids: Tensor, canvas: Tensor, before: Tensor | None) -> Tensor:
        """The model's own attention without pages, for tests: text [L], canvas [C] -> [C, V].

        `before` [C, V] are the logits of the pass before.
        """
        self.model.set_attn_implementation("eager")
        try:
            logits: Tensor = self.model(
                input_ids=token_ids[None],
                decoder_input_ids=canvas[None],
                self_conditioning_logits=None if before is None else before[None],
            ).logits
        finally:
            self.model.set_attn_implementation(PAGED_ATTENTION)
        return logits[0]

    def _feedback(self, canvases: Seq[Span]) -> Tensor | None:
        """Of all rows, [T, H]; None where every canvas is at its first pass."""
        if all(span.feedback is None for span in canvases):
            return None
        width: int = self.model.config.text_config.hidden_size
        nothing = torch.zeros(1, width, dtype=self.dtype, device=self.device)
        return torch.cat(
            [
                nothing.expand(len(span.token_ids), -1) if span.feedback is None else span.feedback
                for span in canvases
            ]
        )

    def _tell(self, module: object, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor] | None:
        """Put our soft embeddings in the place of those that transformers makes of logits.

        It would want logits of all canvases or of none.
        """
        return None if self._soft is None else (args[0], self._soft[None])


def _rule(generation_config: Any) -> EntropyBound:
    """What a checkpoint's generation_config.json says; else what transformers takes."""
    said = {
        **{
            field.name: getattr(generation_config, field.name, None)
            for field in fields(EntropyBound)
        },
        "num_steps": generation_config.max_denoising_steps,
        "entropy_bound": getattr(generation_config.sampler_config, "entropy_bound", None),
    }
    return EntropyBound(**{name: value for name, value in said.items() if value is not None})


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


def is_canvas_lm(path: Path) -> bool:
    """Whether a folder holds such a model, by its config.json alone."""
    return read_config(path).get("model_type") == CANVAS_TYPE


def load_canvas_lm(path: Path, *, dtype: torch.dtype, device: torch.device) -> CanvasLM:
    """Load a folder of model_type diffusion_gemma; its vision tower is loaded, but never asked."""
    what = f"{path} (model_type diffusion_gemma)"
    source = DiffusionGemmaForBlockDiffusion
    return CanvasLM(pretrained(path, what, dtype=dtype, device=device, model_class=source))
