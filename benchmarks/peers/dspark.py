"""Our drafter with its Markov head as a DSpark drafter, which is what llama.cpp calls the two."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

HEADS = {
    "markov.embed_previous.weight": "markov_head.markov_w1.weight",
    "markov.lm_head.weight": "markov_head.markov_w2.weight",
}
"""Our name -> DSpark's (arXiv 2607.05147): the bias of token t after s is w2[t] . w1[s]."""


def convert(drafter: Path, target: Path) -> None:
    """Read a drafter's folder, and write one that llama.cpp's converter takes for DSpark.

    Raises KeyError where the drafter has other heads than a Markov head.
    """
    config = json.loads((drafter / "config.json").read_text("utf-8"))
    config.pop("draft_heads")
    config["architectures"] = ["DSparkDraftModel"]
    config["sample_from_anchor"] = False  # the row of the last known token drafts nothing
    heads = load_file(drafter / "heads.safetensors")
    tensors = load_file(drafter / "model.safetensors")
    tensors |= {HEADS[name]: tensor for name, tensor in heads.items()}
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
