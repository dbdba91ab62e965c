"""No request waits for a kernel: all that any needs are compiled, or read from disk, at start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BUILD = """
from numba.core.event import install_recorder
from engine.build import EngineConfig, build_engine
from engine.models.cpu import chain, forwards, sampling
from engine.request.options import GenerationOptions
from engine.request.sampling_params import SamplingParams

KERNELS = (
    forwards.read_text, forwards.draft_blocks,
    chain.draw_chains, sampling.draw_tokens,
)
with install_recorder("numba:compile") as compiled:
    engine = build_engine(EngineConfig(num_threads=1, max_model_len=256))
print(len(compiled.buffer))
"""
SERVE = (
    BUILD
    + """
before = [len(kernel.overloads) for kernel in KERNELS]
requests = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=8),
    "filtered": SamplingParams(temperature=1.0, top_p=0.9, top_k=20, seed=1, max_tokens=8),
    "penalised": SamplingParams(temperature=1.0, presence_penalty=1.0, seed=1, max_tokens=8),
    "biased": SamplingParams(temperature=0.0, logit_bias={7: 1.0}, max_tokens=8),
}
prompt = engine.tokenizer.encode("Once upon a time")
for mode in ("ar", "deer", "spec_diff"):
    for name, params in requests.items():
        options = GenerationOptions() if mode == "ar" else GenerationOptions(draft_length=3)
        engine.add(engine.make_sequence(mode + name, prompt, params, mode=mode, options=options))
while engine.has_work:
    engine.step()
assert engine._runner.uses_kernels
after = [len(kernel.overloads) for kernel in KERNELS]
assert before == after == [1] * len(KERNELS), (before, after)
"""
)


def test_what_a_request_needs_is_ready_when_the_engine_is_built_and_compiled_but_once(
    tmp_path: Path,
) -> None:
    # In processes of their own: in this one, other tests have called the kernels.
    assert num_compiled(SERVE, tmp_path) > 0
    assert num_compiled(BUILD, tmp_path) == 0


def num_compiled(script: str, cache: Path) -> int:
    """How many functions are compiled until the engine is built; then it may serve."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)
