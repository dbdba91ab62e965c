"""`dfastllm eval-drafter`: tokens committed a verify forward, without a server."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
from collections import defaultdict
from pathlib import Path

import torch

from engine.models.dflash import DFlashDrafter, load_drafter
from engine.models.loader import check_pair
from engine.training.acceptance import RULES, Curves, accepted_drafts, write_texts
from engine.training.documents import Document, read_documents
from engine.training.draft_cost import measure_cost
from engine.training.drafts import DFlashProposer
from engine.training.eval_report import Report
from engine.training.lessons import Lessons
from engine.training.own_verifier import OptionError, OwnVerifier, load_own_verifier

EMBEDDED = Path(__file__).parents[1] / "weights"
LONGEST_PROMPT = 512
DESCRIPTION = """\
Judge a drafter without a server. The verifier answers held-out prompts once a temperature; from its
answers alone follow the rounds of draft and verify of every fixed draft length: under the coupled
rule those that a server has, under the p/q rule their expectation, with no drawing of lots.
docs/evaluate-a-drafter.md explains the figures.
"""
logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> None:
    """Parse, evaluate, and write the tables."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(parsed.threads or os.cpu_count() or 1)
    torch.set_float32_matmul_precision("high")
    try:
        report = evaluate(parsed)
    except OptionError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if parsed.json:
        parsed.json.write_text(json.dumps(report.to_json(), indent=2) + "\n", "utf-8")
    sys.stdout.write(report.to_markdown())


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dfastllm eval-drafter",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data = "held-out documents, .jsonl with `text` or `messages`, or .txt; either may end in .xz"
    add = parser.add_argument
    add("--verifier", type=Path, default=EMBEDDED / "verifier", metavar="PATH", help="model folder")
    add("--drafter", type=Path, default=EMBEDDED / "drafter", metavar="PATH", help="its drafter")
    add("--data", required=True, nargs="+", metavar="FILE", help=data)
    add("--prompts", type=number, default=64, help="about so many, all sources alike (%(default)s)")
    add("--rollout-tokens", type=number, default=128, help="longest answer (%(default)s)")
    add("--temperature", type=float, nargs="+", default=[0.0, 1.0], metavar="T", help="(0 1)")
    add("--acceptance", choices=RULES, nargs="+", default=RULES, help="rules (all)")
    add("--lengths", type=int, nargs="+", metavar="K", help="fixed draft lengths (all)")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    add("--no-cost", action="store_true", help="do not time the models")
    add("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    add("--threads", type=number, help="CPU threads (default: all)")
    add("--seed", type=int, default=1234, help="of the choice of prompts (%(default)s)")
    return parser


def evaluate(parsed: argparse.Namespace) -> Report:
    """All that the command line asks for."""
    device = torch.device(parsed.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    verifier = load_own_verifier(str(parsed.verifier), device)
    frozen, tokenizer = verifier.frozen, verifier.tokenizer
    proposer = DFlashProposer(load_own_drafter(parsed.drafter, verifier), frozen)
    depth, new_tokens = proposer.num_drafts, parsed.rollout_tokens
    cost = None
    if not parsed.no_cost:
        cost = measure_cost(parsed.verifier, parsed.drafter, verifier.served.dtype, device)
    lengths = check_lengths(parsed.lengths, depth)
    room = verifier.served.max_positions - new_tokens - depth - 1
    if room < 1:
        raise OptionError(
            f"--rollout-tokens: {new_tokens} leave no room for a prompt in the verifier's "
            f"{verifier.served.max_positions} positions"
        )
    lessons = Lessons(tokenizer, min(LONGEST_PROMPT, room))
    documents = read_documents_of(parsed.data)
    prompts = prompts_by_source(lessons, documents, parsed.prompts, parsed.seed)
    curves: dict[float, Curves] = {}
    for temperature in parsed.temperature:
        logger.info("T = %g: %d prompts", temperature, len(prompts))
        stop = tokenizer.eos_token_ids
        texts = write_texts(frozen, prompts, temperature, new_tokens, stop, depth)
        curves[temperature] = accepted_drafts(frozen, proposer, texts, parsed.acceptance, lengths)
    names = (parsed.verifier.resolve().name, parsed.drafter.resolve().name)
    return Report(*names, len(prompts), new_tokens, cost, curves)


def load_own_drafter(path: Path, verifier: OwnVerifier) -> DFlashDrafter:
    """In float32, as all that judges it is; raises OptionError where it is not this verifier's."""
    try:
        drafter = load_drafter(path, torch.float32, verifier.frozen.device)
        check_pair(verifier.served, drafter, verifier.tokenizer.vocab_size)
    except KeyError as error:
        raise OptionError(f"--drafter: {path / 'config.json'} has no {error}") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise OptionError(f"--drafter: {error}") from error
    if not drafter.config.is_plain:
        raise OptionError("--drafter: windows, causal blocks and scaled logits are not judged here")
    return drafter


def prompts_by_source(
    lessons: Lessons, documents: list[Document], count: int, seed: int
) -> list[tuple[str, list[int]]]:
    """(source, prompt) pairs, about as many of each source."""
    by_source: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        by_source[document.source].append(document)
    share = math.ceil(count / max(1, len(by_source)))
    prompts: list[tuple[str, list[int]]] = []
    complaints = ["--data: there is no document"]
    for source, members in sorted(by_source.items()):
        try:
            found = lessons.prompts(members, min(share, len(members)), seed)
        except OptionError as error:  # a source whose documents are all too long is left out
            complaints.append(str(error))
            continue
        prompts += [(source, prompt) for prompt in found]
    if not prompts:
        raise OptionError(complaints[-1])
    return prompts


def read_documents_of(files: list[str]) -> list[Document]:
    try:
        return list(read_documents(files))
    except (OSError, ValueError) as error:
        raise OptionError(f"--data: {error}") from error


def check_lengths(asked: list[int] | None, longest: int) -> list[int]:
    """The draft lengths, shortest first; none named: all."""
    if asked is None:
        return list(range(longest + 1))
    for length in asked:
        if not 0 <= length <= longest:
            raise OptionError(f"--lengths: this drafter drafts 0 to {longest} tokens, not {length}")
    return sorted(set(asked))


def number(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    main()
