"""`dfastllm train-drafter`: a drafter for the user's own verifier."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
from pathlib import Path

import torch

from engine.training.drafter import DrafterRecipe
from engine.training.drafter_run import DrafterRun, Options
from engine.training.drafter_shape import Shape
from engine.training.loop import Budget
from engine.training.losses import LOSSES
from engine.training.own_rollouts import RolloutPlan
from engine.training.own_verifier import OptionError

logger = logging.getLogger(__name__)

DESCRIPTION = """\
Train a DFlash drafter for your own verifier: any causal language model that `dfastllm serve` runs.
The verifier answers prompts from your data, the drafter learns to foresee its answers, and held
back prompts show how many tokens a verify forward then commits. The verifier is not changed.

OUT becomes the drafter's folder; OUT/run holds rollouts, checkpoint, log and figures. A run that
was killed goes on where it was when it is started again with the same options.
docs/train-a-drafter.md has a worked example.
"""


def main(arguments: list[str] | None = None) -> None:
    """Parse, train, and say what came of it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(parsed.threads or os.cpu_count() or 1)
    torch.set_float32_matmul_precision("high")
    options = _options(parsed)
    try:
        figures = DrafterRun(options).run()
    except OptionError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    for temperature, committed in figures.items():
        logger.info("%s: %.2f tokens committed a verify forward", temperature, committed)
    logger.info("the drafter is in %s; to serve the pair:\n  %s", options.out, _serve(options))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dfastllm train-drafter",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data = "documents: .jsonl with `text` or `messages`, or .txt; either may end in .xz"
    mask = "id that stands for a token not known yet (default: the tokenizer's mask token, or the "
    prompt = "longest prompt (default: 512, or what the verifier's positions leave)"
    add = parser.add_argument
    add("--verifier", required=True, metavar="PATH", help="model folder in Hugging Face format")
    add("--data", required=True, nargs="+", metavar="FILE", help=data)
    add("--out", type=Path, metavar="DIR", help="the drafter's folder (default: NAME-DFlash)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=duration, help="training time (default: 30)")
    budget.add_argument("--steps", type=number, help="training steps, instead of --minutes")
    add("--rollouts", type=number, default=3000, help="answers to learn from (%(default)s)")
    add("--rollout-tokens", type=number, default=128, help="tokens of each (%(default)s)")
    add("--rollout-batch", type=number, default=32, help="answers at once (%(default)s)")
    add("--prompt-tokens", type=number, help=prompt)
    add("--layers", type=number, help="default: one for eight of the verifier's, at most 5")
    add("--block-size", type=block_size, default=8, help="anchor and masks (%(default)s)")
    add("--ffn-size", type=number, help="feed-forward width (default: the verifier's)")
    add("--taps", type=layers, metavar="I,J,...", help="verifier layers read, counted from 0")
    add("--markov-rank", type=rank, default=0, help="of a Markov head; 0: none (%(default)s)")
    add("--loss", choices=LOSSES, default=DrafterRecipe.loss, help="(%(default)s)")
    add("--mask-token-id", type=int, metavar="ID", help=mask + "first id beyond the tokenizer's)")
    add("--eval-prompts", type=number, default=32, help="held back (%(default)s)")
    add("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    add("--threads", type=number, help="CPU threads (default: all)")
    add("--seed", type=int, default=1234, help="(%(default)s)")
    return parser


def _options(parsed: argparse.Namespace) -> Options:
    verifier = Path(parsed.verifier)
    minutes = None if parsed.steps else parsed.minutes or 30.0
    return Options(
        verifier=str(verifier),
        data=tuple(parsed.data),
        out=parsed.out or Path(f"{verifier.resolve().name}-DFlash"),
        budget=Budget(minutes=minutes, steps=parsed.steps),
        shape=Shape(
            parsed.layers, parsed.block_size, parsed.ffn_size, parsed.taps, parsed.markov_rank
        ),
        recipe=DrafterRecipe(loss=parsed.loss),
        rollouts=RolloutPlan(parsed.rollouts, parsed.rollout_tokens, parsed.rollout_batch),
        mask_token_id=parsed.mask_token_id,
        prompt_tokens=parsed.prompt_tokens,
        eval_prompts=parsed.eval_prompts,
        seed=parsed.seed,
        device=parsed.device or ("cuda" if torch.cuda.is_available() else "cpu"),
    )


def _serve(options: Options) -> str:
    verifier, drafter = Path(options.verifier).resolve(), options.out.resolve()
    pair = {"VDIFF_AR_VERIFIER_MODEL": verifier, "VDIFF_MODEL": drafter}
    settings = " ".join(f"{name}={shlex.quote(str(path))}" for name, path in pair.items())
    return f"{settings} dfastllm serve"


# Their names are what argparse says of a value that is none.
def number(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def rank(text: str) -> int:
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {value}")
    return value


def duration(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"must be more than 0, got {value}")
    return value


def block_size(text: str) -> int:
    if (value := int(text)) < 2:
        raise argparse.ArgumentTypeError(f"must be at least 2, an anchor and a mask; got {value}")
    return value


def layers(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(part) for part in text.split(",")}))


if __name__ == "__main__":
    main()
