"""onnxruntime-genai in fp32 on its CPU provider, one static batch of padded prompts."""

from __future__ import annotations

import json
import sys

import onnxruntime_genai as og

from benchmarks.peers.workers.lines import Lines

PAD_ID, MASK_ID = 0, 3


def main() -> None:
    lines = Lines()
    config = og.Config(sys.argv[1])
    threads = {"intra_op_num_threads": int(sys.argv[2])}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
    # The mask is never written: the end of text is ignored.
    config.overlay(json.dumps({"model": {"eos_token_id": MASK_ID, "pad_token_id": PAD_ID}}))
    model = og.Model(config)

    def generate(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        width = max(map(len, prompts))
        params = og.GeneratorParams(model)
        params.set_search_options(
            max_length=width + num_tokens, batch_size=len(prompts), do_sample=False
        )
        generator = og.Generator(model, params)
        generator.append_tokens([ids + [PAD_ID] * (width - len(ids)) for ids in prompts])
        while not generator.is_done():
            generator.generate_next_token()
        return [
            [int(token) for token in generator.get_sequence(index)[width:]]
            for index in range(len(prompts))
        ]

    lines.serve(generate)


if __name__ == "__main__":
    main()
