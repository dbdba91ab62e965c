"""Table `plain_diffusion`: the plain LLaDA loop against our ways, on our diffusion model."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.lanes import encoded
from benchmarks.modes import drive, sequences
from benchmarks.options import Options
from benchmarks.peers.peer import LibraryPeer
from benchmarks.peers.place import WEIGHTS, Place
from benchmarks.peers.running import PeerPrompt, Running, figures
from benchmarks.prompts import prompts_of_round, tokens_of_round
from benchmarks.results import Cell, Chart, Table
from benchmarks.rounds import Sample, interleave, middle, ratio
from engine.build import build_engine
from engine.dfastllm_engine import DFastLLMEngine
from engine.request.options import NO_OPTIONS
from worker.engine_config import engine_config
from worker.settings import read_settings

PLAIN = "plain LLaDA loop"
OURS = ("deer", "semi_ar", "diffusion")
COLUMNS = ("way", "tokens/s", f"x {PLAIN}", "tokens / CPU s", "forwards / token")
NOTES = (
    "Medians over interleaved rounds; `x` is the median of each round's own ratio. One prompt at "
    "once, greedy, 128 new tokens, end of text ignored, no HTTP, no prefix cache, fp32.",
    f"`{PLAIN}`: transformers' forward over prompt and canvas for each token, the most certain "
    "mask revealed, no cache; causal in the prompt and bidirectional in the canvas, as the model "
    "has learnt it. In a process of its own with as many threads, which stands still in between.",
    "`semi_ar` and `diffusion` are our engine on the same diffusion model with its defaults, "
    "`deer` on verifier and drafter; `forwards / token` counts those of any model.",
)


def run(options: Options) -> Table:
    settings = read_settings({**os.environ, "VDIFF_REDIS_URL": "unix:///not-used"})
    engine = build_engine(replace(engine_config(settings), prefix_cache=False))
    with ExitStack() as stack:
        log = Path(stack.enter_context(TemporaryDirectory(prefix="dflp"))) / "log"
        # Ours in another interpreter; it needs nothing but what our worker needs.
        place = Place(Path(sys.prefix).parent)
        loop = stack.enter_context(_plain_loop().started(place, log))
        loop.freeze()
        cases: dict[str, Callable[[int], Sample]] = {
            PLAIN: partial(_measure_plain, engine, loop, options)
        }
        for mode in OURS:
            cases[f"ours, {mode}"] = partial(_measure_ours, engine, mode, options)
        samples = interleave(cases, options.num_rounds)
    bars = {"one at once": {name: middle(own, "tokens_s") for name, own in samples.items()}}
    title = "The plain diffusion loop against ours"
    rows = [_row(name, samples) for name in samples]
    chart = Chart("tokens / s", bars)
    return Table("plain_diffusion", title, COLUMNS, rows, NOTES, samples, chart)


def _plain_loop() -> LibraryPeer:
    return LibraryPeer(
        name=PLAIN,
        home=Path(sys.prefix).name,
        needs=("bin/python",),
        worker="plain_loop",
        arguments=lambda place: [str(WEIGHTS / "diffusion")],
    )


def _measure_plain(
    engine: DFastLLMEngine, loop: Running, options: Options, number: int
) -> dict[str, float]:
    num_tokens = tokens_of_round(options, number)
    asked = prompts_of_round(options, 1, number)
    prompts = [PeerPrompt("", encoded(engine, prompt, num_tokens)) for prompt in asked]
    _, found = figures(loop, prompts, num_tokens, at_once=1)
    return {**found, "forwards_per_token": 1.0}


def _measure_ours(
    engine: DFastLLMEngine, mode: str, options: Options, number: int
) -> dict[str, float]:
    num_tokens = tokens_of_round(options, number)
    asked = prompts_of_round(options, 1, number)
    result = drive(
        engine, deque(sequences(engine, asked, num_tokens, 0.0, mode, NO_OPTIONS)), at_once=1
    )
    num_forwards = sum(summary.num_forwards for summary in result.summaries)
    return {
        "tokens_s": result.num_tokens / result.seconds,
        "tokens_cpu_s": result.num_tokens / result.cpu_seconds,
        "forwards_per_token": num_forwards / result.num_tokens,
    }


def _row(name: str, samples: Mapping[str, list[Sample]]) -> list[Cell]:
    own = samples[name]
    return [
        name,
        middle(own, "tokens_s"),
        ratio(own, samples[PLAIN], "tokens_s"),
        middle(own, "tokens_cpu_s"),
        middle(own, "forwards_per_token"),
    ]
