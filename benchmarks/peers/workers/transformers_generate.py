"""transformers' `generate`, all prompts in one padded batch, alone or with a DFlash drafter."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM

from benchmarks.peers.workers.lines import Lines

PAD_ID = 0


def main() -> None:
    lines = Lines()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verifier")
    parser.add_argument("--drafter", help="in the layout for transformers")
    args = parser.parse_args()
    verifier = AutoModelForCausalLM.from_pretrained(args.verifier, dtype=torch.float32)
    verifier.generation_config.eos_token_id = None  # the end of text is ignored
    drafting: dict[str, object] = {}
    if args.drafter:
        drafter = AutoModel.from_pretrained(args.drafter, dtype=torch.float32)
        drafting = {"assistant_model": drafter, "speculation_type": "dflash"}

    def generate(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        return _generate(verifier, prompts, num_tokens, drafting)

    lines.serve(generate)


@torch.inference_mode()
def _generate(
    verifier: Any, prompts: list[list[int]], num_tokens: int, drafting: dict[str, object]
) -> list[list[int]]:
    width = max(map(len, prompts))
    rows = [[PAD_ID] * (width - len(ids)) + ids for ids in prompts]
    seen = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
    written = verifier.generate(
        input_ids=torch.tensor(rows),
        attention_mask=torch.tensor(seen),
        max_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=PAD_ID,
        **drafting,
    )
    new: list[list[int]] = written[:, width:].tolist()
    return new


if __name__ == "__main__":
    main()
