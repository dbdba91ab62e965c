"""Write a drafter folder anew for another loader: transformers' DFlash, or the published layout.

Names and config differ, the weights do not. transformers 5.23 drafts with
`MuseGlimmerAssistantModel`, which is DFlash in every detail (norms, halves-rotated rope on queries
and keys, the block sees itself and all before its anchor, taps after layer i) as long as its layers
are `full_attention`: its own default, a sliding window, is not what `engine.models.dflash` computes
and is refused on the way back. Our optional heads have no place in either layout and are left out,
which changes what is drafted, but never what is written.
"""

import argparse
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.models.dflash import HEADS_FILE, DFlashConfig, DFlashDrafter
from engine.models.drafter_layout import (
    TO_TRANSFORMERS,
    UnlikeDFlashError,
    is_assistant,
    own_names,
    published_config,
    renamed,
)
from engine.models.families import ASSISTANT_TYPE

logger = logging.getLogger(__name__)

LAYOUTS = ("transformers", "published", "ours")
HEADS_KEY = "draft_heads"
SHARED_KEYS = (  # of the same name and meaning in the published and in transformers' config
    "block_size",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_target_layers",  # unknown to transformers, which keeps it; so is the next
    "rms_norm_eps",
    "vocab_size",
)
DESCRIPTION = """\
Convert a DFlash drafter folder (config.json, model.safetensors) between loaders. The layout of
SOURCE is seen from its config. Layouts:
  transformers  for transformers' AutoModel and generation_config.speculation_type = "dflash"
  published     as z-lab publishes drafters, bfloat16: for vLLM, SGLang, llama.cpp's converter
  ours          the same layout in SOURCE's number format, as the server loads it
"""


@dataclass(frozen=True)
class PlainDrafter:
    """A drafter without optional heads: its config, and its tensors under our names."""

    config: DFlashConfig
    tensors: dict[str, Tensor]

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors["fc.weight"].dtype

    def published_config(self) -> dict[str, Any]:
        raw = self.config.to_json() | {"dtype": _dtype_name(self.dtype)}
        raw.pop(HEADS_KEY, None)
        return raw

    def to(self, dtype: torch.dtype) -> "PlainDrafter":
        return PlainDrafter(self.config, {k: v.to(dtype) for k, v in self.tensors.items()})


def convert_drafter(source: Path, target: Path, layout: str) -> None:
    """Read the drafter in `source`, of whatever layout, and write it to `target` in another."""
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; known are {', '.join(LAYOUTS)}")
    if source.resolve() == target.resolve():
        raise ValueError("source and target are the same folder")
    drafter = read_drafter(source)
    if layout == "published":
        drafter = drafter.to(torch.bfloat16)
    config, tensors = drafter.published_config(), drafter.tensors
    if layout == "transformers":
        config, tensors = transformers_config(drafter), renamed(tensors, TO_TRANSFORMERS)
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / HEADS_FILE).unlink(missing_ok=True)  # of a drafter that stood here before
    if (source / HEADS_FILE).exists():
        logger.warning("the heads of %s have no place in another layout: left out", source)


def read_drafter(folder: Path) -> PlainDrafter:
    """The drafter in any of the layouts; what our drafter would compute otherwise is refused."""
    raw = json.loads((folder / "config.json").read_text("utf-8"))
    if not is_assistant(raw) and "dflash_config" not in raw:
        raise UnlikeDFlashError(
            f"{folder} holds no DFlash drafter: config.json has no dflash_config"
        )
    try:
        tensors = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise UnlikeDFlashError(f"{folder / 'model.safetensors'}: {error}") from error
    _refuse_what_differs(raw)
    tensors = own_names(raw, tensors)
    raw = {k: v for k, v in published_config(raw, {}).items() if k != HEADS_KEY}
    drafter = PlainDrafter(DFlashConfig.from_json(raw), tensors)
    _check_tensors(drafter)
    return drafter


def transformers_config(drafter: PlainDrafter) -> dict[str, Any]:
    """`config.json` of a `MuseGlimmerAssistantModel`."""
    own = drafter.published_config()
    rope = {"rope_type": "default", "rope_theta": drafter.config.rope_theta}
    return {
        "architectures": ["MuseGlimmerAssistantModel"],
        "model_type": ASSISTANT_TYPE,
        **{key: own[key] for key in SHARED_KEYS},
        **own["dflash_config"],
        "rope_parameters": rope,
        "dtype": own["dtype"],
        # Its defaults are ids of another vocabulary.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _refuse_what_differs(raw: dict[str, Any]) -> None:
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    unsaid = "sliding_attention" if is_assistant(raw) else "full_attention"
    if "sliding_attention" in (raw.get("layer_types") or [unsaid]):
        raise UnlikeDFlashError("its layers have a sliding window; full attention alone is known")
    if rope.get("rope_type", "default") != "default":
        raise UnlikeDFlashError(
            f"its rope is of type {rope['rope_type']!r}; default alone is known"
        )
    if raw.get("attention_bias") or raw.get("hidden_act", "silu") != "silu":
        raise UnlikeDFlashError("its projections have biases, or its activation is not silu")


def _check_tensors(drafter: PlainDrafter) -> None:
    with torch.device("meta"):
        expected = {k: v.shape for k, v in DFlashDrafter(drafter.config).state_dict().items()}
    found = {k: v.shape for k, v in drafter.tensors.items()}
    if wrong := sorted(
        k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k)
    ):
        raise UnlikeDFlashError(f"missing, strange or misshapen tensors: {', '.join(wrong)}")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main(arguments: list[str] | None = None) -> None:
    """`dfastllm convert-drafter SOURCE TARGET --to LAYOUT`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(
        prog="dfastllm convert-drafter",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="drafter folder to read")
    parser.add_argument("target", type=Path, metavar="TARGET", help="folder to write")
    parser.add_argument("--to", required=True, choices=LAYOUTS, help="layout to write")
    given = parser.parse_args(arguments)
    try:
        convert_drafter(given.source, given.target, given.to)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    logger.info("%s: the drafter of %s, %s layout", given.target, given.source, given.to)


if __name__ == "__main__":
    main()
