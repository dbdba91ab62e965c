"""The two layouts that DFlash drafters are published in, and the way from one to the other.

z-lab's is the one that we write. transformers' is `MuseGlimmerAssistantModel` (5.23,
models/muse_glimmer_assistant), drafted with by `speculation_type="dflash"`: the projection of the
context is called encoder, all of its config is on one level, and a sliding layer sees both ways and
one row further: distance <= window (`sliding_window_bidirectional_overlay`), where z-lab's sees
distance < window. Once its cache has dropped old rows, transformers itself sees one row less at the
anchor; we follow its mask. Both take the verifier's embeddings bare, without its norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from engine.models.checkpoint import UnsupportedModelError
from engine.models.families import ASSISTANT_TYPE

TO_TRANSFORMERS = {"fc.": "encoder.fc.", "hidden_norm.": "encoder.output_norm_enc."}
FROM_TRANSFORMERS = {theirs: own for own, theirs in TO_TRANSFORMERS.items()}
OF_THE_VERIFIER = ("vocab_size", "num_target_layers")


class UnlikeDFlashError(UnsupportedModelError):
    """The folder holds something that this layout, or our drafter, does not compute."""


def is_assistant(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is of transformers' layout."""
    return raw.get("model_type") == ASSISTANT_TYPE


def published_config(raw: dict[str, Any], verifier: Mapping[str, int]) -> dict[str, Any]:
    """config.json of either layout -> as z-lab publishes it.

    What an assistant does not say of its verifier is taken from `verifier`.
    """
    if not is_assistant(raw):
        return raw
    known = {key: raw.get(key, verifier.get(key)) for key in OF_THE_VERIFIER}
    if missing := sorted(key for key, value in known.items() if value is None):
        raise UnlikeDFlashError(
            f"config.json lacks {', '.join(missing)}: take it from the verifier"
        )
    inner = {key: raw[key] for key in ("mask_token_id", "target_layer_ids")}
    types = raw.get("layer_types") or ["sliding_attention"] * raw["num_hidden_layers"]
    widened = {"sliding_window": raw["sliding_window"] + 1} if "sliding_window" in raw else {}
    return {**raw, **known, **widened, "layer_types": types, "is_causal": False} | {
        "dflash_config": inner
    }


def own_names(raw: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of either layout under z-lab's names."""
    return renamed(tensors, FROM_TRANSFORMERS) if is_assistant(raw) else tensors


def renamed(tensors: dict[str, Tensor], prefixes: dict[str, str]) -> dict[str, Tensor]:
    """Replace the first prefix that fits each name."""

    def name(key: str) -> str:
        found = next((old for old in prefixes if key.startswith(old)), "")
        return prefixes.get(found, "") + key.removeprefix(found)

    return {name(key): value for key, value in tensors.items()}
