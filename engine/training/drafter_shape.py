"""The shape of a drafter for a given verifier: a small share of it, and what it taps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.models.dflash import DFlashConfig
from engine.training.own_verifier import OptionError, OwnVerifier

VERIFIER_LAYERS_PER_LAYER = 8  # a draft should cost an eighth of a verifier forward, or less
MOST_LAYERS = 5  # DFlash's own choice for verifiers of 28 layers and more
SHALLOW = 6  # below this many layers there is no middle to speak of


@dataclass(frozen=True)
class Shape:
    """What may be chosen; None is for "in proportion to the verifier"."""

    layers: int | None = None
    block_size: int = 8
    ffn_size: int | None = None
    taps: tuple[int, ...] | None = None
    markov_rank: int = 0


def drafter_config(verifier: OwnVerifier, shape: Shape, mask_token_id: int) -> DFlashConfig:
    """Heads, width and positions are the verifier's; depth and feed-forward are the shape's."""
    served, config = verifier.served, verifier.config
    num_layers = served.kv_shape.num_layers
    return DFlashConfig(
        num_layers=shape.layers or default_layers(num_layers),
        hidden_size=served.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=served.kv_shape.num_kv_heads,
        head_dim=served.kv_shape.head_dim,
        intermediate_size=shape.ffn_size or _feed_forward_size(config),
        vocab_size=served.vocab_size,
        mask_token_id=mask_token_id,
        target_layer_ids=_checked_taps(shape.taps or default_taps(num_layers), num_layers),
        num_target_layers=num_layers,
        block_size=shape.block_size,
        rms_norm_eps=float(getattr(config, "rms_norm_eps", None) or 1e-6),
        rope_theta=_rope_theta(config),
        max_position_embeddings=served.max_positions,
        markov_rank=shape.markov_rank,
    )


def default_layers(verifier_layers: int) -> int:
    return min(MOST_LAYERS, max(1, round(verifier_layers / VERIFIER_LAYERS_PER_LAYER)))


def default_taps(verifier_layers: int) -> tuple[int, ...]:
    """Evenly spaced from layer 1 to the last but two, as DFlash has them (arXiv 2602.06036).

    Five for a deep verifier, three for one of fewer than 16 layers; a shallow one is tapped from
    its first layer to its last.
    """
    shallow = verifier_layers < SHALLOW
    first, last = (0, verifier_layers - 1) if shallow else (1, verifier_layers - 3)
    count = min(last - first + 1, 5 if verifier_layers >= 16 else 3)
    if count == 1:
        return (first,)
    return tuple(round(first + i * (last - first) / (count - 1)) for i in range(count))


def _checked_taps(taps: tuple[int, ...], verifier_layers: int) -> tuple[int, ...]:
    if not all(0 <= tap < verifier_layers for tap in taps):
        raise OptionError(f"--taps: the verifier has layers 0 to {verifier_layers - 1}")
    return taps


def _feed_forward_size(config: Any) -> int:
    size = getattr(config, "intermediate_size", None)
    return size if isinstance(size, int) else 3 * int(config.hidden_size)


def _rope_theta(config: Any) -> float:
    """That of the layers that see everything, where a model has one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    return float(rope.get("rope_theta") or 10_000.0)
