"""The verifier: any causal language model of transformers, on paged attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.attention import PAGED_ATTENTION, Backend, PagedContext
from engine.models.checkpoint import UnsupportedModelError, read_config
from engine.models.compiled import (
    OpaqueContext,
    compile_forward,
    new_context,
    num_padded_logits,
    num_padded_rows,
    pad_logit_rows,
    pad_spans,
)
from engine.models.families import CANVAS_TYPE, FAMILIES, CheckpointKind, checkpoint_kind
from engine.models.fused_layers import FusedLayer, can_fuse
from engine.models.kv_pool import KvPool, KvShape, LayerShape
from engine.models.packing import PackedBatch, pack
from engine.models.pretrained import pretrained

__all__ = ["CausalLM", "KvShape", "UnsupportedModelError", "load_causal_lm"]


class CausalLM:
    """Runs packed rows through a transformers model and taps hidden states on the way."""

    def __init__(self, model: nn.Module, *, tap_layers: tuple[int, ...] = ()) -> None:
        self.model = model
        config: Any = model.config
        text_config = config.get_text_config()
        self.model_type: str = config.model_type
        self.vocab_size: int = text_config.vocab_size
        self.hidden_size: int = text_config.hidden_size
        self.max_positions: int = text_config.max_position_embeddings
        self.kv_shape = kv_shape(text_config)
        self._taps: dict[int, Tensor] = {}
        self._tap_layers = tap_layers
        self._compiled: Callable[..., tuple[Tensor, list[Tensor]]] | None = None
        self._context = OpaqueContext(-1)  # of no forward until `compile`
        self._hook_taps()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def window(self) -> int | None:
        """The sliding window of some of its layers, or of all."""
        config: Any = self.model.config.get_text_config()  # type: ignore[operator, union-attr]
        types = getattr(config, "layer_types", None)
        is_sliding = types is None or "sliding_attention" in types
        window: int | None = getattr(config, "sliding_window", None)
        return window if is_sliding else None

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def forward(
        self, batch: PackedBatch, pool: KvPool, backend: Backend, logit_rows: Tensor
    ) -> Tensor:
        """Run all T rows and write their keys and values; logits of `logit_rows` [R] -> [R, V]."""
        if self._compiled is not None:
            num_rows = num_padded_rows(len(batch.token_ids), self.device)
            if num_rows is not None:
                return self._forward_compiled(batch, pool, backend, logit_rows, num_rows)
        context = PagedContext(batch, pool, backend)
        return self._run(batch.token_ids, batch.positions, logit_rows, context)

    def compile(self) -> None:
        """From now on run through torch.compile, which compiles in the first forwards.

        The layers must be what they are to remain: fused, quantised, or neither.
        """
        self._context = new_context()
        self._compiled = compile_forward(self._graph, self.device)

    def _forward_compiled(
        self, batch: PackedBatch, pool: KvPool, backend: Backend, logit_rows: Tensor, num_rows: int
    ) -> Tensor:
        """As `forward`, with rows of no meaning behind the real ones where a graph wants them."""
        assert self._compiled is not None
        num_real, num_logits = len(batch.token_ids), len(logit_rows)
        if num_rows > num_real:
            batch = pack(pad_spans(batch.spans, num_rows), batch.page_size, batch.device)
        self._context.set(PagedContext(batch, pool, backend))
        rows = pad_logit_rows(logit_rows, num_padded_logits(num_logits, num_rows, self.device))
        logits, taps = self._compiled(batch.token_ids, batch.positions, rows)
        for index, hidden in zip(self._tap_layers, taps, strict=True):
            self._taps[index] = hidden[:, :num_real]
        # A CUDA graph writes its next output to the same place.
        return logits[:num_logits].clone() if logits.is_cuda else logits[:num_logits]

    def _graph(
        self, token_ids: Tensor, positions: Tensor, logit_rows: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        logits = self._run(token_ids, positions, logit_rows, self._context)
        return logits, [self._taps[index] for index in self._tap_layers]

    def _run(
        self,
        token_ids: Tensor,
        positions: Tensor,
        logit_rows: Tensor,
        context: PagedContext | OpaqueContext,
    ) -> Tensor:
        output = self.model(
            input_ids=token_ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=logit_rows,
            paged=context,
        )
        return output.logits[0]  # type: ignore[no-any-return]

    def eager_logits(
        self, token_ids: Tensor, visible: Tensor | None = None, num_rows: int = 0
    ) -> Tensor:
        """The model's own attention without pages or cache, for tests: [B, L] -> [B, L, V]

        `visible` [L, L] says which row sees which (True); without it the model's own mask holds.
        With `num_rows` only the last ones get logits.
        """
        mask = None if visible is None else torch.zeros(visible.shape, dtype=self.dtype)
        if mask is not None and visible is not None:
            mask.masked_fill_(~visible, torch.finfo(self.dtype).min)
            mask = mask.to(self.device)[None, None]
        self.model.set_attn_implementation("eager")  # type: ignore[operator]
        try:
            out = self.model(
                input_ids=token_ids,
                attention_mask=mask,
                use_cache=False,
                logits_to_keep=num_rows,
            )
            return out.logits  # type: ignore[no-any-return]
        finally:
            self.model.set_attn_implementation(PAGED_ATTENTION)  # type: ignore[operator]

    def fuse_layers(self) -> bool:
        """Replace the layers by faster ones that compute the same; False where none is known.

        There is no eager attention after this: `eager_logits` must have been asked before.
        """
        decoder: Any = self.model.get_decoder()  # type: ignore[operator]
        if not all(map(can_fuse, getattr(decoder, "layers", [decoder]))):
            return False
        decoder.layers = nn.ModuleList(map(FusedLayer, decoder.layers))
        self._hook_taps()
        return True

    def tapped_hidden(self) -> Tensor:
        """Hidden states of the last forward after each tapped layer, side by side: [T, taps * H]"""
        return torch.cat([self._taps[layer][0] for layer in self._tap_layers], dim=-1)

    def embed(self, token_ids: Tensor, scale: float = 1.0) -> Tensor:
        """The bare embeddings, [N] -> [N, H]: what a drafter shares, whatever the model does to
        them itself (Gemma scales them, Muse normalises them).
        """
        weight: Tensor = self.model.get_input_embeddings().weight  # type: ignore[operator]
        return F.embedding(token_ids, weight) * scale

    def logits(self, hidden: Tensor) -> Tensor:
        """The output head alone, for a drafter that shares it: [N, H] -> [N, V]"""
        return self.model.get_output_embeddings()(hidden)  # type: ignore[operator, no-any-return]

    def _hook_taps(self) -> None:
        if not self._tap_layers:
            return
        layers = self.model.get_decoder().layers  # type: ignore[operator]
        for index in self._tap_layers:
            if index >= len(layers):
                raise UnsupportedModelError(
                    f"this drafter was made for another verifier: target_layer_ids has {index}, "
                    f"the verifier has {len(layers)} layers"
                )
            layers[index].register_forward_hook(self._tap(index))

    def _tap(self, index: int):  # type: ignore[no-untyped-def]
        def keep(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            self._taps[index] = output if isinstance(output, Tensor) else output[0]

        return keep


def kv_shape(config: Any) -> KvShape:
    """Of a text config of transformers; its layers may differ (Gemma 4), as may keys and values."""
    layers = tuple(_layer_shape(config, layer) for layer in range(config.num_hidden_layers))
    first = layers[0]
    is_plain = set(layers) == {LayerShape(first.num_kv_heads, first.key_dim, first.key_dim)}
    unlike = () if is_plain else layers
    return KvShape(config.num_hidden_layers, first.num_kv_heads, first.key_dim, unlike)


def _layer_shape(config: Any, layer: int) -> LayerShape:
    own: Any = config.per_layer_config[layer]
    heads = own.num_attention_heads
    if getattr(own, "kv_lora_rank", None):  # latent attention (DeepSeek), with its keys spelled out
        return LayerShape(heads, own.qk_nope_head_dim + own.qk_rope_head_dim, own.v_head_dim)
    num_kv_heads = getattr(own, "num_key_value_heads", None) or heads
    dim = getattr(own, "head_dim", None) or own.hidden_size // heads
    return LayerShape(num_kv_heads, dim, dim)


def load_causal_lm(
    path: Path, *, dtype: torch.dtype, device: torch.device, tap_layers: tuple[int, ...] = ()
) -> CausalLM:
    """Load a checkpoint folder; no code of the checkpoint's own is ever run."""
    kind = read_config(path).get("model_type", "unknown")
    found = checkpoint_kind(path)
    if found is CheckpointKind.DRAFTER or kind in (*FAMILIES, CANVAS_TYPE):
        raise UnsupportedModelError(f"{path} (model_type {kind}) holds no causal LM, but a {found}")
    model = pretrained(path, f"{path} (model_type {kind})", dtype=dtype, device=device)
    try:
        return CausalLM(model, tap_layers=tap_layers)
    except AttributeError as error:  # no attention heads, no limit of positions, no plain layers
        raise UnsupportedModelError(f"model_type {kind} is not supported: {error}") from error
