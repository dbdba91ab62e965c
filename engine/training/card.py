"""Stage 7: the model card, written from what the run recorded and from what the models answer."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from engine.models.dflash import DFlashDrafter
from engine.training.acceptance import COUPLED, accepted_drafts, write_texts
from engine.training.corpus import load_corpus
from engine.training.documents import IM_START, source_weight, turn
from engine.training.drafts import DFlashProposer
from engine.training.frozen_verifier import FrozenVerifier
from engine.training.presets import ROW_LENGTHS
from engine.training.sources import describe
from engine.training.tokenizer import STOP_IDS

CHAT_PROMPTS = (
    "I want to book a table for two at an Italian restaurant in San Jose tonight.",
    "What will the weather be like in Chicago tomorrow?",
    "I would like a large latte with oat milk, please.",
    "Hello, I need a doctor's appointment for next Monday.",
    "What is 12 + 7 * 3?",
    "Tom has 3 boxes with 8 pencils each. He gives away 5 pencils. How many are left?",
    "How do you spell garden?\nHow many a's are in garden?",
    "Convert this CSV to Markdown:\nCity,Country\nParis,France\nOslo,Norway\nLima,Peru",
)
TEXT_PROMPTS = (
    "Once upon a time, there was a little fox who",
    "One day, Lily and her brother went to the park. They saw a big",
)
ANSWER_TOKENS = 96
INTRO = """\
# The embedded models

A small verifier and the drafter that proposes for it. They are here so that the server starts, and
can be tested and measured, without a download and without an accelerator. They are no assistant:
the last section shows all they can do. This page is written by `python -m engine.training card`.
"""
LIMITS = """\
## What they cannot do

They know a few narrow things: dialogues in which a table, a ride, a doctor or a coffee is booked or
the weather asked for, openings of very simple stories, arithmetic step by step, spelling, small
tables. They know the form of these better than the content: they make up every fact (names, prices,
times, forecasts) and get most sums, spellings and tables wrong. They lose the thread of a story
within some sentences, and answer an open question with something that only sounds like an answer.
They write no code and know English alone. They take up to 2,048 tokens, but have trained on rows of
1,024 at most.
"""


def write_card(
    out: Path,
    run_folder: Path,
    verifier: FrozenVerifier,
    drafter: DFlashDrafter,
    tokenizer: Tokenizer,
) -> None:
    """Write `OUT/README.md`."""
    parts = [
        INTRO,
        _models(verifier, drafter),
        _data(run_folder),
        _training(run_folder),
        _figures(json.loads((out / "evaluation.json").read_text("utf-8"))),
        LIMITS,
        _answers(verifier, drafter, tokenizer),
    ]
    (out / "README.md").write_text("\n".join(parts), "utf-8")


def _models(verifier: FrozenVerifier, drafter: DFlashDrafter) -> str:
    shape, own = verifier.config, drafter.config
    taps = ", ".join(map(str, own.target_layer_ids))
    heads = f"{shape.num_attention_heads} heads, {shape.num_key_value_heads} of keys and values"
    return f"""\
| | verifier | drafter |
|---|---|---|
| kind | `Qwen3ForCausalLM`, tied embeddings | DFlash, blocks of {own.block_size} (anchor + masks) |
| parameters | {_count(verifier.model):,} | {_count(drafter):,}, and the verifier's embedding |
| layers | {shape.num_hidden_layers} | {own.num_layers}, tapping verifier layers {taps} |
| width | {shape.hidden_size}, {heads} | the same |
| feed-forward | {shape.intermediate_size} | {own.intermediate_size} |
| on disk | bfloat16 | bfloat16 |

Vocabulary of {shape.vocab_size:,} byte-level tokens, split as Qwen2 splits; ChatML template.
"""


def _data(run_folder: Path) -> str:
    corpus = load_corpus(run_folder / "corpus")
    weights = _facts(run_folder, "verifier")["options"]["weights"]
    tokens: Counter[str] = Counter()
    for name, begin, end in zip(corpus.sources, corpus.offsets, corpus.offsets[1:], strict=False):
        tokens[name] += int(end - begin)
    lines = [
        f"| {name} | {describe(name).what} | {count:,} | {source_weight(name, weights):g} "
        f"| {describe(name).licence} |"
        for name, count in tokens.most_common()
    ]
    head = "| source | what | tokens | weight | licence |\n|---|---|---|---|---|\n"
    note = "\nThe weight says how often a source is read in an epoch.\n"
    return "## Data\n\n" + head + "\n".join(lines) + "\n" + note


def _training(run_folder: Path) -> str:
    lines = ["## Training\n", "| | steps | tokens read | minutes |", "|---|---|---|---|"]
    for stage in ("verifier", "drafter"):
        facts = _facts(run_folder, stage)
        minutes = facts["elapsed_s"] / 60
        lines.append(f"| {stage} | {facts['step']:,} | {facts['tokens']:,} | {minutes:.0f} |")
    options = _facts(run_folder, "drafter")["options"]
    spans = ", ".join(f"{length} up to {until:.0%}" for until, length in ROW_LENGTHS[:-1])
    lines.append(
        f"\nRows of {spans} of the time, {ROW_LENGTHS[-1][1]:,} after. The drafter learnt from"
        f"\n{options['num_rollouts']:,} outputs of the verifier, half of them greedy, half sampled,"
        "\nwith corpus text in every fourth batch. Minutes are wall-clock time: another machine"
        "\nreads more or less text in them. The command for all of it:\n"
    )
    command = _without_folders(options["command"]).replace("training drafter", "training all")
    return "\n".join([*lines, "```sh", command, "```\n"])


def _without_folders(command: str) -> str:
    """Where the files lay is nobody's business; their names are."""
    return " ".join(word.rsplit("/", 1)[-1] for word in command.split(" "))


def _figures(figures: dict[str, Any]) -> str:
    perplexity, greedy = figures["perplexity"], figures["mean_committed_t0"]
    sampled = figures["mean_committed_t1"]
    lines = [
        "## Figures on held-out text\n",
        "Tokens committed a verify forward, the bonus token included (1 is what plain decoding",
        "does), under the coupled rule, whole blocks, answers up to their end.\n",
        "| source | tokens | perplexity | committed, T = 0 | committed, T = 1 |",
        "|---|---|---|---|---|",
    ]
    for name in sorted(perplexity, key=lambda n: (n == "all", n)):
        committed = [f"{t[name]['mean']:.2f}" if name in t else "" for t in (greedy, sampled)]
        row = perplexity[name]
        cells = [name, f"{row['num_tokens']:,}", f"{row['perplexity']:.2f}", *committed]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _answers(verifier: FrozenVerifier, drafter: DFlashDrafter, tokenizer: Tokenizer) -> str:
    opened = IM_START + "assistant\n"
    texts = [turn(("user", p)) + opened for p in CHAT_PROMPTS] + list(TEXT_PROMPTS)
    prompts = [("", tokenizer.encode(text).ids) for text in texts]
    proposer = DFlashProposer(drafter, verifier)
    depth = proposer.num_drafts
    answers = write_texts(verifier, prompts, 0.0, ANSWER_TOKENS, STOP_IDS, depth)
    lines = [f"## Ten prompts, at temperature 0, at most {ANSWER_TOKENS} tokens\n"]
    for prompt, answer in zip((*CHAT_PROMPTS, *TEXT_PROMPTS), answers, strict=True):
        rounds = accepted_drafts(verifier, proposer, [answer], [COUPLED], [depth])
        mean = rounds[COUPLED][depth]["all"].mean_committed
        text = tokenizer.decode([t for t in answer.outputs if t not in STOP_IDS])
        lines += [f"Prompt:\n{_fenced(prompt)}", f"Answer:\n{_fenced(text)}"]
        lines.append(f"{answer.num_outputs} tokens, {mean:.2f} a verify forward.\n")
    return "\n".join(lines)


def _fenced(text: str) -> str:
    return f"````text\n{text}\n````\n"


def _facts(run_folder: Path, stage: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((run_folder / f"{stage}.json").read_text("utf-8"))
    return facts


def _count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
