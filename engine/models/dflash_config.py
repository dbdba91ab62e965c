"""Shape of a DFlash drafter, as a published `config.json` says it.

Keys as z-lab publishes them (Qwen3-8B-DFlash-b16, Qwen3.6-27B-DFlash) and reads them
(z-lab/dflash, dflash/model.py): what `dflash_config` holds comes before a key of the same name
beside it. A layer of kind `sliding_attention` sees rows less than `sliding_window` away, and is
causal inside the block unless `is_causal` says otherwise, which it says for all layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from engine.models.checkpoint import UnsupportedModelError
from engine.models.kv_pool import KvShape

_ROPE_TYPES = ("default", "linear", "yarn", "llama3")  # others depend on the length of the text


@dataclass(frozen=True)
class DFlashConfig:
    """Shape of a drafter, and where it taps the verifier."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    mask_token_id: int
    target_layer_ids: tuple[int, ...]
    num_target_layers: int
    block_size: int = 8
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    max_position_embeddings: int = 2048
    markov_rank: int = 0  # 0: no such head, as in the published drafters
    has_confidence: bool = False
    attention_bias: bool = False
    rope_scaling: tuple[tuple[str, Any], ...] = ()  # the keys of `rope_parameters` but the theta
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] = ()
    causal: bool | None = None  # of all layers; None: of the sliding ones alone
    input_embedding_scale: float = 1.0  # of the verifier's bare embeddings
    output_multiplier: float = 1.0
    final_logit_softcapping: float | None = None

    @property
    def context_size(self) -> int:
        """Width of what `project_context` takes: all taps side by side."""
        return len(self.target_layer_ids) * self.hidden_size

    @property
    def kv_shape(self) -> KvShape:
        """What the context of one token takes."""
        return KvShape(self.num_layers, self.num_kv_heads, self.head_dim)

    @property
    def is_plain(self) -> bool:
        """Whether it is as we train them: a row sees all context and all of its block, and what
        is shared with the verifier is used as it is.
        """
        shared = (self.input_embedding_scale, self.output_multiplier, self.final_logit_softcapping)
        return not self.sliding_layers and not self.causal and shared == (1.0, 1.0, None)

    @property
    def shapes_logits(self) -> bool:
        """Whether it draws from anything else than what the output head says."""
        return self.output_multiplier != 1.0 or self.final_logit_softcapping is not None

    def window(self, layer: int) -> int | None:
        """A row of this layer sees what is less than so far away; None: everything."""
        return self.sliding_window if layer in self.sliding_layers else None

    def is_causal(self, layer: int) -> bool:
        """Whether a row of this layer sees only those before it in its block."""
        return layer in self.sliding_layers if self.causal is None else self.causal

    def rope_rates(self) -> tuple[Tensor, float]:
        """Radians a position of each pair [D / 2], and the factor of cos and sin."""
        if not self.rope_scaling:
            pairs = torch.arange(0, self.head_dim, 2, dtype=torch.float32)
            exponent = pairs / self.head_dim
            return self.rope_theta**-exponent, 1.0
        config = Qwen3Config(
            head_dim=self.head_dim,
            hidden_size=self.hidden_size,
            num_attention_heads=self.num_heads,
            max_position_embeddings=self.max_position_embeddings,
            rope_parameters={**dict(self.rope_scaling), "rope_theta": self.rope_theta},
        )
        with torch.device("cpu"):
            rope = Qwen3RotaryEmbedding(config)
        return rope.inv_freq.float(), float(rope.attention_scaling)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> DFlashConfig:
        """Read a published `config.json`; transformers 5 keeps the theta in `rope_parameters`.

        A KeyError names what is missing; what cannot be computed is an `UnsupportedModelError`.
        """
        dflash = raw["dflash_config"]
        _refuse_what_differs(raw)
        both = raw | dflash
        types = raw.get("layer_types") or []
        sliding = tuple(i for i, kind in enumerate(types) if kind == "sliding_attention")
        theta, scaling = _rope(raw)
        heads = raw.get("draft_heads", {})
        return cls(
            num_layers=raw["num_hidden_layers"],
            hidden_size=raw["hidden_size"],
            num_heads=raw["num_attention_heads"],
            num_kv_heads=raw["num_key_value_heads"],
            head_dim=raw["head_dim"],
            intermediate_size=raw["intermediate_size"],
            vocab_size=raw["vocab_size"],
            mask_token_id=both["mask_token_id"],
            target_layer_ids=tuple(both["target_layer_ids"]),
            num_target_layers=raw["num_target_layers"],
            block_size=both["block_size"],
            rms_norm_eps=raw["rms_norm_eps"],
            rope_theta=theta,
            max_position_embeddings=raw.get("max_position_embeddings", 2048),
            markov_rank=heads.get("markov_rank", 0),
            has_confidence=heads.get("confidence", False),
            attention_bias=bool(raw.get("attention_bias")),
            rope_scaling=scaling,
            sliding_window=raw["sliding_window"] if sliding else None,
            sliding_layers=sliding,
            causal=raw.get("is_causal") or (False if sliding and "is_causal" in raw else None),
            input_embedding_scale=both.get("input_embedding_scale", 1.0),
            output_multiplier=both.get("output_multiplier", 1.0),
            final_logit_softcapping=both.get("final_logit_softcapping") or None,
        )

    def to_json(self) -> dict[str, Any]:
        """The published layout of `config.json`; our heads, if any, under a key of their own."""
        heads = {"markov_rank": self.markov_rank, "confidence": self.has_confidence}
        extra = {"draft_heads": heads} if any(heads.values()) else {}
        kinds = {True: "sliding_attention", False: "full_attention"}
        return extra | {
            "architectures": ["DFlashDraftModel"],
            "model_type": "qwen3",
            "attention_bias": self.attention_bias,
            "block_size": self.block_size,
            "dflash_config": {
                "mask_token_id": self.mask_token_id,
                "target_layer_ids": list(self.target_layer_ids),
                **self._output_json(),
            },
            "dtype": "bfloat16",
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "layer_types": [kinds[i in self.sliding_layers] for i in range(self.num_layers)],
            "max_position_embeddings": self.max_position_embeddings,
            "num_attention_heads": self.num_heads,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_kv_heads,
            "num_target_layers": self.num_target_layers,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": True,
            "vocab_size": self.vocab_size,
            **({"rope_scaling": dict(self.rope_scaling)} if self.rope_scaling else {}),
            **({"sliding_window": self.sliding_window} if self.sliding_layers else {}),
            **({} if self.causal is None else {"is_causal": self.causal}),
        }

    def _output_json(self) -> dict[str, Any]:
        usual = {
            "input_embedding_scale": 1.0,
            "output_multiplier": 1.0,
            "final_logit_softcapping": None,
        }
        return {k: getattr(self, k) for k, v in usual.items() if getattr(self, k) != v}


def _rope(raw: dict[str, Any]) -> tuple[float, tuple[tuple[str, Any], ...]]:
    """Theta, and what scales it: both in `rope_parameters`, or beside and in `rope_scaling`."""
    given = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    theta = given.pop("rope_theta", None)
    kind = given.setdefault("rope_type", given.pop("type", "default"))
    if kind not in _ROPE_TYPES:
        raise UnsupportedModelError(f"a drafter with rope of type {kind!r} cannot be computed")
    theta = raw["rope_theta"] if theta is None else theta
    return float(theta), () if kind == "default" else tuple(sorted(given.items()))


def _refuse_what_differs(raw: dict[str, Any]) -> None:
    kinds = raw.get("architectures") or ["DFlashDraftModel"]
    if "DFlash2DraftModel" in kinds:
        raise UnsupportedModelError(
            "a DFlash 2 drafter has convolutions and a candidate selector, which are not known"
        )
    if raw.get("hidden_act", "silu") != "silu":
        raise UnsupportedModelError(f"a drafter with hidden_act {raw['hidden_act']!r}, not 'silu'")
