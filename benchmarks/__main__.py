"""`python -m benchmarks`: lists the tables; with names, or all, measures them."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

from benchmarks.options import RESULTS, Options
from worker.cpu_threads import set_cpu_policy

TABLES = {
    "modes": "every way of generating inside one process: tokens/s, forwards, agreement",
    "concurrency": "ar, each fixed draft length and the planner, from 1 to 64 at once",
    "batching": "continuous batching against static batches and one at a time",
    "backends": "a verifier forward by operators, kernels or compiled, in 8 bits, by attention",
    "threads": "forwards and tokens/s by CPU threads, quiet and beside busy processes",
    "entropy": "length, steps and fallback by entropy against each fixed setting, one process",
    "serving": "the same over HTTP, through the queue: tokens/s, time to first token, pace",
    "prefix": "time to first token by the length of a prefix, cold and warm",
    "prefix_sharing": "time to first token by where a prefix lies: computed, Redis, host, device",
    "queue_path": "what HTTP and the queue add: latency, Redis traffic, jobs/s (no model)",
    "scale_out": "1 to 4 workers without a pace on one Redis, and its own limit (no model)",
    "scale_out_paced": "1 to 4 workers that stream at 5 ms a step on one Redis (no model)",
    "streams": "1, 64 and 512 SSE streams at 20 tokens/s: each token's way (no model)",
    "memory": "MiB of weights, and of 1,000 tokens of context, by mode",
    "device": "an 8B-shaped verifier against the device's memory bandwidth (CUDA)",
    "peers": "our server against other engines on the same weights and prompts (--peers FOLDER)",
    "plain_diffusion": "the plain LLaDA loop against our ways, on our diffusion model",
    "startup": "seconds from `dfastllm serve` to ready and to the first token",
}


def main() -> int:
    args = _parser().parse_args()
    if not args.tables:
        width = max(map(len, TABLES))
        print("\n".join(f"{name:<{width}}  {text}" for name, text in TABLES.items()))
        return 0
    options = Options(args.quick, args.rounds, args.seed, args.data, args.out, args.peers)
    # As the worker does, and like it before torch is imported, which reads this once.
    set_cpu_policy(os.environ)
    for name in TABLES if "all" in args.tables else args.tables:
        _measure(name, options)
    return 0


def _measure(name: str, options: Options) -> None:
    from benchmarks.environment import describe
    from benchmarks.results import markdown, write

    header = describe(options)
    print(json.dumps(header), flush=True)
    table = importlib.import_module(f"benchmarks.{name}").run(options)
    print(markdown(table, header))
    for path in write(table, header, options.folder):
        print(f"written: {path}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    words = f"{', '.join(TABLES)} or all; none: list them"
    parser.add_argument("tables", nargs="*", type=_table, metavar="table", help=words)
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures mean little")
    parser.add_argument("--rounds", type=_positive, default=3, help="A B A B ... (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and of sampling")
    parser.add_argument("--data", type=Path, help="prompts from a .jsonl or .jsonl.xz file")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    installed = "folder of the table peers: see benchmarks/peers/README.md"
    parser.add_argument("--peers", type=Path, help=installed)
    return parser


def _table(text: str) -> str:
    if text not in TABLES and text != "all":
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(TABLES)}, all")
    return text


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
