"""OpenVINO GenAI's ContinuousBatchingPipeline in fp32, keys and values too, no prefix cache."""

from __future__ import annotations

import sys

import numpy as np
import openvino
from openvino_genai import ContinuousBatchingPipeline, GenerationConfig, SchedulerConfig

from benchmarks.peers.workers.lines import Lines

CACHE_GB = 1


def main() -> None:
    lines = Lines()
    model, num_threads = sys.argv[1], int(sys.argv[2])
    scheduling = SchedulerConfig()
    scheduling.cache_size = CACHE_GB
    scheduling.enable_prefix_caching = False
    pipeline = ContinuousBatchingPipeline(
        model,
        scheduling,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
            "INFERENCE_NUM_THREADS": num_threads,
        },
    )

    def generate(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        config = GenerationConfig()
        config.max_new_tokens = num_tokens
        config.ignore_eos = True
        config.do_sample = False
        asked = [openvino.Tensor(np.array([ids], dtype=np.int64)) for ids in prompts]
        results = pipeline.generate(asked, [config] * len(asked))
        return [list(result.m_generation_ids[0]) for result in results]

    lines.serve(generate)


if __name__ == "__main__":
    main()
