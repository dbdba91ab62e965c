"""The model card, from what the run recorded and what the models answer; no stage must have run."""

from collections.abc import Callable

from engine.training.card_answers import answers
from engine.training.card_figures import (
    committed,
    cost,
    paragraph,
    perplexity,
    perplexity_by_position,
)
from engine.training.card_loading import gguf, loading
from engine.training.card_run import data, training
from engine.training.compare import comparison_section
from engine.training.diffusion_card import diffusion_section
from engine.training.presets import ROW_LENGTHS
from engine.training.trained import Trained

PURPOSE = """
Here so that the server starts, and can be tested and measured, without a download and without an
accelerator. This is no assistant: the last section shows all that it can do. The page is written by
`dfastllm train card`.
"""
COMPARED = """
Trained alike and shortly, in steps that the shipped one has more of; tokens committed a verify
forward on held-out prompts, whole blocks drafted.
"""
LIMITS = """
They know a few narrow things: dialogues in which a table, a ride, a doctor or a coffee is booked or
the weather asked for, openings of very simple stories, arithmetic step by step, spelling, small
tables. They know the form of these better than the content: they make up every fact (names, prices,
times, forecasts) and get most sums, spellings and tables wrong. They lose the thread of a story
within some sentences, and answer an open question with something that only sounds like an answer.
They write no code and know English alone.
"""


def write_card(trained: Trained) -> None:
    """Write `OUT/README.md`; a section with nothing to tell is left out."""
    parts = [section(trained) for section in SECTIONS]
    (trained.out / "README.md").write_text("\n".join(filter(None, parts)), "utf-8")


def introduction(trained: Trained) -> str:
    others = ["the drafter that proposes for it"] if trained.drafter else []
    others += ["a diffusion model made from it"] if trained.diffusion else []
    named = " and ".join([", ".join(["A small verifier", *others[:-1]]), *others[-1:]])
    return "# The embedded models\n\n" + paragraph(f"{named}. {PURPOSE}")


def models(trained: Trained) -> str:
    """One column a model; the diffusion model is of the verifier's shape."""
    shape = trained.verifier.config
    heads = f"{shape.num_attention_heads} heads, {shape.num_key_value_heads} of keys and values"
    rows = [
        ["", "verifier"],
        ["---", "---"],
        ["kind", f"`{trained.verifier.model.config.architectures[0]}`, tied embeddings"],
        ["parameters", f"{_count(trained.verifier.model):,}"],
        ["layers", f"{shape.num_hidden_layers}"],
        ["width", f"{shape.hidden_size}, {heads}"],
        ["feed-forward", f"{shape.intermediate_size}"],
        ["on disk", "bfloat16"],
    ]
    columns = [_drafter_column(trained)] if trained.drafter else []
    if trained.diffusion:
        parameters = f"{_count(trained.diffusion):,}"
        same = ["the verifier's"] * (len(rows) - 5)
        columns.append(["diffusion", "---", "block diffusion", parameters, *same, "bfloat16"])
    table = [" | ".join(cells) for cells in zip(map(" | ".join, rows), *columns, strict=True)]
    lines = "\n".join(f"| {line} |" for line in table)
    vocabulary = f"Vocabulary of {shape.vocab_size:,} byte-level tokens, split as Qwen2 splits"
    return f"{lines}\n\n{vocabulary}; ChatML template.\n"


def _drafter_column(trained: Trained) -> list[str]:
    assert trained.drafter is not None
    own = trained.drafter.config
    taps = ", ".join(map(str, own.target_layer_ids))
    heads = f"{own.num_heads} heads, {own.num_kv_heads} of keys and values"
    extra = [f"Markov head of rank {own.markov_rank}"] if own.markov_rank else []
    extra += ["confidence head"] if own.has_confidence else []
    return [
        "drafter",
        "---",
        ", ".join([f"DFlash, blocks of {own.block_size} (anchor + masks)", *extra]),
        f"{_count(trained.drafter):,}, and the verifier's embedding",
        f"{own.num_layers}, tapping verifier layers {taps}",
        f"{own.hidden_size}, {heads}",
        f"{own.intermediate_size}",
        "bfloat16",
    ]


def comparison(trained: Trained) -> str:
    if not trained.comparison:
        return ""
    rows = comparison_section(trained.comparison)
    return "## Drafters compared\n\n" + paragraph(COMPARED) + "\n" + rows


def diffusion(trained: Trained) -> str:
    figures = trained.figures.get("diffusion")
    if trained.diffusion is None or figures is None:
        return ""
    return diffusion_section(trained.diffusion, trained.tokenizer, figures)


def limits(trained: Trained) -> str:
    longest = trained.verifier.config.max_position_embeddings
    rows = min(ROW_LENGTHS[-1][1], longest)
    lengths = f"They take up to {longest:,} tokens"
    lengths += "." if rows == longest else f", but have trained on rows of {rows:,} at most."
    return "## What they cannot do\n\n" + paragraph(LIMITS + lengths)


def _count(model: object) -> int:
    return sum(p.numel() for p in model.parameters())  # type: ignore[attr-defined]


SECTIONS: tuple[Callable[[Trained], str], ...] = (
    introduction,
    models,
    data,
    training,
    perplexity,
    perplexity_by_position,
    committed,
    cost,
    comparison,
    loading,
    gguf,
    limits,
    diffusion,
    answers,
)
