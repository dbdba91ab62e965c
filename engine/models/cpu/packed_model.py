"""Takes the weights of fused layers over into the form that the kernels read."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.models.causal_lm import CausalLM
from engine.models.cpu.attention import BLOCK
from engine.models.cpu.decoder import Cache, Kept, Shape, Weights, new_buffers
from engine.models.cpu.forwards import Decoder
from engine.models.cpu.product import (
    PANEL,
    Floats,
    Panels,
    Storage,
    num_products,
    pack_panels,
)
from engine.models.cpu.weights import (
    can_multiply_in,
    choose_storage,
    embedding_bits,
    join,
    to_array,
)
from engine.models.dflash import DFlashDrafter
from engine.models.fused_drafter import FusedDraftLayer
from engine.models.fused_layers import FusedLayer

STATIC_ROTATIONS = frozenset({"default", "linear", "llama3", "yarn"})
"""Whose angles are a function of the position alone."""


_ONE = np.float32(1.0)


class PackedLayers:
    """The layers of a verifier, a diffusion model or a drafter."""

    def __init__(
        self,
        layers: Seq[Any],
        final_norm: Tensor,
        rotation: Callable[[Tensor], tuple[Tensor, Tensor]],
        storage: Storage,
    ) -> None:
        """`rotation` maps positions [T] to cos and sin, [1, T, D] each."""
        first = layers[0]
        self.storage = storage
        self.shape = Shape(
            num_layers=len(layers),
            hidden=len(first.input_norm),
            num_heads=first.num_heads,
            num_kv_heads=first.num_kv_heads,
            head_dim=first.head_dim,
            intermediate=-(-first.down.shape[1] // PANEL) * PANEL,
        )
        self.weights = Weights(
            input_norm=_stack(layer.input_norm for layer in layers),
            post_norm=_stack(layer.post_norm for layer in layers),
            final_norm=to_array(final_norm),
            head_norm=_head_norms(layers, self.shape),
            qkv=self._matrices(to_array(layer.qkv) for layer in layers),
            qkv_bias=_biases(layers),
            out=self._matrices(to_array(layer.out) for layer in layers),
            gate_up=self._matrices(self._gate_up(layer.gate_up) for layer in layers),
            down=self._matrices(self._down(layer.down) for layer in layers),
            scales=np.array([_scale(layer) for layer in layers], np.float32),
            windows=np.array([getattr(layer, "window", None) or 0 for layer in layers], np.int64),
            eps=np.float32(first.eps),
        )
        matrices = (self.weights.qkv, self.weights.out, self.weights.gate_up, self.weights.down)
        self.num_weights = sum(map(num_products, matrices))
        """Multiply-adds of a row in all matrices."""
        self._rotation = rotation
        self._cos = self._sin = np.empty((0, self.shape.head_dim // 2), np.float32)

    @property
    def num_bytes(self) -> int:
        return sum(weight.nbytes for weight in self.weights)

    def new_cache(self, num_blocks: int) -> tuple[Kept, Kept]:
        """Zeroed room for the keys and the values of so many blocks, in every layer."""
        size = self.shape.num_layers, self._num_kept(num_blocks * BLOCK)
        dtype: Any = np.uint32 if self.storage is Storage.PAIRS else np.float32
        return np.zeros(size, dtype), np.zeros(size, dtype)

    def _num_kept(self, num_positions: int) -> int:
        """How many floats or pairs the keys of so many positions are, in a layer."""
        size = num_positions * self.shape.num_kv_heads * self.shape.head_dim
        return size // 2 if self.storage is Storage.PAIRS else size

    def page_planes(self, kept: tuple[Kept, Kept], num_pages: int, page_size: int) -> list[Tensor]:
        """Views of keys and values, of each layer [pages, bytes]; not of what lies behind them."""
        size = self._num_kept(num_pages * page_size)
        layers = (layer for memory in kept for layer in memory)
        return [torch.from_numpy(x[:size]).view(num_pages, -1).view(torch.uint8) for x in layers]

    def with_rotation(self, kept: tuple[Kept, Kept], num_positions: int) -> Cache:
        """Keys and values, and angles for so many positions at least."""
        if num_positions > len(self._cos):
            length = max(256, 1 << (num_positions - 1).bit_length())
            tables = self._rotation(torch.arange(length))
            half = self.shape.head_dim // 2
            self._cos, self._sin = (to_array(table[0, :, :half]) for table in tables)
        return Cache(*kept, self._cos, self._sin)

    def _matrices(self, weights: Any) -> Panels:
        return join(self.pack(weight) for weight in weights)

    def pack(self, weight: Floats) -> Panels:
        return pack_panels(weight, self.storage)

    def _gate_up(self, weight: Tensor) -> Floats:
        """[2 I, H] as rows of 32 gates, 32 ups, and so on."""
        size, hidden = self.shape.intermediate, self.shape.hidden
        both = np.zeros((2, size, hidden), np.float32)
        both[:, : len(weight) // 2] = to_array(weight).reshape(2, -1, hidden)
        return both.reshape(2, -1, PANEL, hidden).swapaxes(0, 1).reshape(-1, hidden)

    def _down(self, weight: Tensor) -> Floats:
        padded = np.zeros((self.shape.hidden, self.shape.intermediate), np.float32)
        padded[:, : weight.shape[1]] = to_array(weight)
        return padded


def fits(layers: Seq[Any]) -> bool:
    """Whether these layers have the sizes that the kernels take."""
    return bool(layers) and all(
        len(layer.input_norm) % PANEL == 0 and layer.head_dim % PANEL == 0 for layer in layers
    )


def can_pack(model: CausalLM) -> bool:
    """Whether the kernels compute this model: fused layers under a static rotation."""
    decoder: Any = model.model.get_decoder()  # type: ignore[operator]
    layers = list(getattr(decoder, "layers", ()))
    if not all(isinstance(layer, FusedLayer) for layer in layers) or not fits(layers):
        return False
    head = model.model.get_output_embeddings()  # type: ignore[operator]
    parameters = getattr(decoder.config, "rope_parameters", None) or {}
    is_static = parameters.get("rope_type", "default") in STATIC_ROTATIONS
    return is_static and head.bias is None and can_multiply_in(model.dtype)


def can_pack_drafter(drafter: DFlashDrafter) -> bool:
    """Whether the kernels compute this drafter: fused layers without windows."""
    config, layers = drafter.config, list(drafter.layers)
    are_fused = all(isinstance(layer, FusedDraftLayer) for layer in layers)
    indices = range(config.num_layers)
    is_plain = not any(config.window(i) or config.is_causal(i) for i in indices)
    return are_fused and is_plain and can_multiply_in(drafter.fc.weight.dtype) and fits(layers)


class PackedModel:
    """A causal model, or the backbone of a diffusion model, out of whose layers it is made."""

    def __init__(self, model: CausalLM) -> None:
        decoder: Any = model.model.get_decoder()  # type: ignore[operator]
        head = model.model.get_output_embeddings().weight  # type: ignore[operator]
        layers = list(decoder.layers)
        self.embedding = embedding_bits(decoder.embed_tokens.weight)
        self.vocab_size = model.vocab_size
        self.layers = PackedLayers(
            layers,
            decoder.norm.weight,
            lambda positions: decoder.rotary_emb(head[:1].float(), positions[None]),
            choose_storage(layers, head),
        )
        self.head = join([self.layers.pack(to_array(head))])
        self.num_head_weights = num_products(self.head)  # of a row
        decoder.layers = nn.ModuleList([Moved()])

    def decoder(
        self,
        kept: tuple[Kept, Kept],
        num_rows: int,
        num_positions: int,
        blocks_per_page: int,
        *,
        layers: PackedLayers | None = None,
        scale: np.float32 = _ONE,
    ) -> Decoder:
        """All that a forward over so many rows and positions needs of the model.

        With other `layers`, a drafter's: `scale` is that of the embeddings that go into them.
        """
        layers = layers or self.layers
        return Decoder(
            layers.shape,
            layers.weights,
            layers.with_rotation(kept, num_positions),
            self.embedding,
            scale,
            self.head,
            new_buffers(num_rows, layers.shape),
            blocks_per_page,
        )

    def new_logits(self, num_rows: int) -> Floats:
        """Room for logits, [R, V], V filled up to whole panels."""
        return np.empty((num_rows, -(-self.vocab_size // PANEL) * PANEL), np.float32)

    def as_tensor(self, logits: Floats) -> Tensor:
        """Logits of tokens alone, in the same memory."""
        found = torch.from_numpy(logits)
        return found if found.shape[1] == self.vocab_size else found[:, : self.vocab_size]


class Moved(nn.Module):
    """Stands where the layers stood whose weights are in the kernels now."""

    def forward(self, *_: object, **__: object) -> Tensor:
        raise RuntimeError("this model's layers were taken over by the CPU kernels")


def _head_norms(layers: Seq[Any], shape: Shape) -> Floats:
    if layers[0].head_norm is None:
        return np.empty((len(layers), shape.num_heads + shape.num_kv_heads, 0), np.float32)
    return _stack(layer.head_norm for layer in layers)


def _biases(layers: Seq[Any]) -> Floats:
    if getattr(layers[0], "qkv_bias", None) is None:
        return np.empty((len(layers), 0), np.float32)
    return _stack(layer.qkv_bias for layer in layers)


def _scale(layer: Any) -> float:
    return float(getattr(layer, "scale", layer.head_dim**-0.5))


def _stack(tensors: Any) -> Floats:
    return np.stack([to_array(tensor) for tensor in tensors])
