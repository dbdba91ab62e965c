"""What a model card says of the run: data, steps, time and the commands for all of it."""

import shlex
from collections import Counter
from pathlib import Path

from engine.training.card_figures import paragraph
from engine.training.corpus import is_packed, load_corpus
from engine.training.documents import source_weight
from engine.training.presets import ROW_LENGTHS
from engine.training.sources import describe
from engine.training.trained import Trained

STAGES = ("verifier", "drafter", "diffusion")


def data(trained: Trained) -> str:
    """Sources by size, of the packed corpus."""
    folder, facts = trained.out / "run" / "corpus", trained.facts("verifier")
    if not (is_packed(folder) and facts):
        return ""
    corpus, weights = load_corpus(folder), facts["options"]["weights"]
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


def training(trained: Trained) -> str:
    """Steps, tokens and minutes of each stage, how it was taught, and by which command."""
    facts = {stage: found for stage in STAGES if (found := trained.facts(stage))}
    if not facts:
        return ""
    lines = ["## Training\n", "| | steps | tokens read | minutes |", "|---|---|---|---|"]
    for stage, of in facts.items():
        minutes = of["elapsed_s"] / 60
        lines.append(f"| {stage} | {of['step']:,} | {of['tokens']:,} | {minutes:.0f} |")
    lines.append("\n" + paragraph(" ".join(_how(trained))))
    lines += ["```sh", *commands({s: f["options"]["command"] for s, f in facts.items()}), "```\n"]
    return "\n".join(lines)


def _how(trained: Trained) -> list[str]:
    told = []
    if of := trained.facts("verifier"):
        told.append(f"The verifier read rows of {row_lengths(of['preset']['max_length'])}.")
    if (of := trained.facts("drafter")) and (trained.out / "run" / "rollouts").exists():
        rollouts = f"{of['options']['num_rollouts']:,} outputs of the verifier"
        told.append(
            f"The drafter learnt from {rollouts}, half of them greedy, half sampled, mixed with "
            "corpus text."
        )
    if trained.facts("diffusion"):
        told.append("The diffusion model began with the verifier's weights.")
    told.append(
        "Minutes are wall-clock time: another machine reads more or less text in them. As it was "
        "run:"
    )
    return told


def row_lengths(longest: int) -> str:
    """The curriculum in words, for models of this many positions."""
    spans: dict[int, float] = {}
    for until, length in ROW_LENGTHS:
        spans[min(length, longest)] = until
    *early, last = spans
    words = [f"{length:,} up to {spans[length]:.0%} of the time" for length in early]
    return ", ".join([*words, f"{last:,} after" if early else f"{last:,}"])


def commands(by_stage: dict[str, str]) -> list[str]:
    """What was typed for each stage; one `all` where nothing but the stage differs."""
    bare = {stage: without_folders(typed) for stage, typed in by_stage.items()}
    as_all = {typed.replace(f" {stage} ", " all ", 1) for stage, typed in bare.items()}
    return list(as_all) if len(as_all) == 1 else list(dict.fromkeys(bare.values()))


def without_folders(command: str) -> str:
    """Where the files lay is nobody's business; their names are."""
    return shlex.join(_name(word) for word in shlex.split(command))


def _name(word: str) -> str:
    option, sign, value = word.rpartition("=")
    if Path(value).is_absolute() or value.startswith("~"):
        return option + sign + Path(value).name
    return word
