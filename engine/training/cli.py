"""Command line of the training: one stage by name, or all of them in order."""

import argparse
import logging
import os
import shlex
import sys

import torch

from engine.training.loop import Budget
from engine.training.losses import LOSSES, POSITION_WEIGHTS
from engine.training.pipeline import Options, Pipeline
from engine.training.presets import DEFAULT_WEIGHTS, PRESETS

DESCRIPTION = """\
Train the models that this server can run: an autoregressive verifier (Qwen3ForCausalLM), the DFlash
drafter that proposes for it, and a block-diffusion model of the verifier's shape. They appear as
OUT/verifier, OUT/drafter and OUT/diffusion in Hugging Face format; OUT/run holds corpus, logs and
checkpoints. A training that was killed goes on from its last checkpoint when it is started again
with the same options.

stages, in order:
  tokenizer   byte-level BPE with Qwen2's split pattern and a ChatML template
  pack        all documents as token ids in one file
  verifier    next-token training; rows of 256, then 512, then 1024 tokens
  rollouts    the verifier's own outputs, half greedy, half sampled
  drafter     block training on the rollouts, mixed with corpus text
  diffusion   the verifier's weights learn to denoise blocks, and to draft without the verifier
  eval        held-out perplexity, and tokens committed a verify forward (needs --heldout)
  card        OUT/README.md: data, figures and answers of the models
  all         everything above, finished stages skipped
  compare     drafters with other losses and heads, trained shortly and judged (needs --heldout)

Each training draws its loss in OUT/run/STAGE/loss.png, where matplotlib is installed;
`dfastllm plot RUN...` draws several in one picture.
"""
WEIGHTS = "how often a source is read in an epoch; 0 leaves it out, unnamed sources weigh 1"
STAGES = (
    "tokenizer",
    "pack",
    "verifier",
    "rollouts",
    "drafter",
    "diffusion",
    "eval",
    "card",
    "all",
    "compare",
)


def main(arguments: list[str] | None = None) -> None:
    """Parse, choose device and threads, run."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    given = sys.argv[1:] if arguments is None else arguments
    parser = build_parser()
    parsed = parser.parse_args(given)
    if parsed.stage in ("eval", "all", "compare") and not parsed.heldout:
        parser.error("--heldout is needed to evaluate")
    device = parsed.device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(parsed.threads or os.cpu_count() or 1)
    torch.set_float32_matmul_precision("high")
    name = parsed.preset or ("gpu" if device.startswith("cuda") else "cpu")
    command = "dfastllm train " + shlex.join(given)
    Pipeline(_options(parsed, device, name, command), PRESETS[name]).run(parsed.stage)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dfastllm train",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("stage", choices=STAGES, metavar="STAGE", help="one of the stages above")
    add("--data", nargs="+", default=[], metavar="FILE", help="training text, .jsonl or .jsonl.xz")
    add("--heldout", nargs="+", default=[], metavar="FILE", help="text that is never trained on")
    add("--out", required=True, metavar="DIR", help="where models, checkpoints and logs go")
    add("--preset", choices=PRESETS, help="model sizes (default: cpu, or gpu where there is one)")
    add("--weights", type=parse_weights, default=DEFAULT_WEIGHTS, metavar="SRC=W,...", help=WEIGHTS)
    add("--minutes", type=float, help="verifier training time (default: 60)")
    add("--steps", type=int, help="verifier training steps, instead of --minutes")
    add("--drafter-minutes", type=float, help="drafter training time (default: 30)")
    add("--drafter-steps", type=int, help="drafter training steps, instead of minutes")
    add("--diffusion-minutes", type=float, help="diffusion training time (default: 30)")
    add("--diffusion-steps", type=int, help="diffusion training steps, instead of minutes")
    add("--rollouts", type=int, default=3000, help="outputs the drafter learns from (%(default)s)")
    add("--rollout-tokens", type=int, default=128, help="new tokens of each (%(default)s)")
    add("--rollout-batch", type=int, default=96, help="outputs written at once (%(default)s)")
    add("--eval-prompts", type=int, default=200, help="held-out prompts (%(default)s)")
    add("--loss", choices=LOSSES, default="soft", help="of the drafter (%(default)s)")
    weighting = "what a draft position weighs in the loss (%(default)s)"
    add("--position-weights", choices=POSITION_WEIGHTS, default="decay", help=weighting)
    add("--markov-rank", type=int, default=0, help="of the drafter's Markov head; 0: none")
    add("--confidence-head", action="store_true", help="let the drafter judge its own tokens")
    first = "start from this drafter's weights instead of from nothing"
    add("--init-drafter", metavar="DIR", help=first)
    add("--compare-steps", type=int, default=150, help="steps of each drafter (%(default)s)")
    add("--seed", type=int, default=1234, help="(%(default)s)")
    add("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    add("--threads", type=int, help="CPU threads (default: all)")
    return parser


def parse_weights(text: str) -> dict[str, float]:
    """`sgd_train=2,star=2.5` -> numbers by source."""
    weights = dict(DEFAULT_WEIGHTS)
    for item in text.split(","):
        source, separator, weight = item.partition("=")
        if not separator:
            raise argparse.ArgumentTypeError(f"expected SOURCE=WEIGHT, got {item!r}")
        weights[source.strip()] = float(weight)
    return weights


def _options(parsed: argparse.Namespace, device: str, preset: str, command: str) -> Options:
    return Options(
        data=tuple(parsed.data),
        heldout=tuple(parsed.heldout),
        out=parsed.out,
        preset_name=preset,
        weights=parsed.weights,
        seed=parsed.seed,
        verifier_budget=_budget(parsed.minutes, parsed.steps, 60),
        drafter_budget=_budget(parsed.drafter_minutes, parsed.drafter_steps, 30),
        diffusion_budget=_budget(parsed.diffusion_minutes, parsed.diffusion_steps, 30),
        num_rollouts=parsed.rollouts,
        rollout_tokens=parsed.rollout_tokens,
        rollout_batch=parsed.rollout_batch,
        eval_prompts=parsed.eval_prompts,
        loss=parsed.loss,
        position_weights=parsed.position_weights,
        markov_rank=parsed.markov_rank,
        confidence_head=parsed.confidence_head,
        compare_steps=parsed.compare_steps,
        init_drafter=parsed.init_drafter,
        device=device,
        command=command,
    )


def _budget(minutes: float | None, steps: int | None, default_minutes: float) -> Budget:
    if steps is not None:
        return Budget(steps=steps)
    return Budget(minutes=default_minutes if minutes is None else minutes)
