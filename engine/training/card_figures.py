"""What a model card says of the figures in `evaluation.json`; what is not there is left out."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from engine.training.trained import Trained

COMMITTED = {"mean_committed_t0": "T = 0", "mean_committed_t1": "T = 1"}


def perplexity(trained: Trained) -> str:
    by_source = trained.figures.get("perplexity")
    if not by_source:
        return ""
    rows = (
        [name, f"{of['num_tokens']:,}", f"{of['perplexity']:.2f}"]
        for name, of in _sorted(by_source)
    )
    return "## Perplexity of the verifier on held-out text\n\n" + table(
        ("source", "tokens", "perplexity"), rows
    )


POSITIONS = """\
By the position of the token in a row of whole held-out documents, one after the other, as the
training has them:

"""


def perplexity_by_position(trained: Trained) -> str:
    """No position may be worse than the ones before: that is a position that was not learnt."""
    buckets = trained.figures.get("perplexity_by_position")
    if not buckets:
        return ""
    rows = (
        [name, f"{of['num_tokens']:,}", f"{of['perplexity']:.2f}"] for name, of in buckets.items()
    )
    return POSITIONS + table(("positions", "tokens", "perplexity"), rows)


def committed(trained: Trained) -> str:
    found = {
        head: trained.figures[key] for key, head in COMMITTED.items() if key in trained.figures
    }
    if not found:
        return ""
    names = dict(_sorted({name: None for by_source in found.values() for name in by_source}))
    rows = (
        [name, *(f"{of[name]['mean']:.2f}" if name in of else "" for of in found.values())]
        for name in names
    )
    return """\
## Tokens committed a verify forward

On held-out prompts, the bonus token included (1 is what plain decoding does), under the coupled
rule, whole blocks, answers up to their end.

""" + table(("source", *found), rows)


def cost(trained: Trained) -> str:
    """One draft against one verify, as timed by the evaluation."""
    of = trained.figures.get("cost")
    if not of:
        return ""
    draft, verify = of["draft_ms"], of["verify_ms"]
    return paragraph(
        f"A draft took {draft:.2f} ms and a verify forward of one token {verify:.2f} ms on the "
        f"machine of this run: {draft / verify:.0%} of it."
    )


def paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 100, break_on_hyphens=False) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _sorted(by_source: dict[str, Any]) -> list[tuple[str, Any]]:
    """By name, the sum of all last."""
    return sorted(by_source.items(), key=lambda item: (item[0] == "all", item[0]))
