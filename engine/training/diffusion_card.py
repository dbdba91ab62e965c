"""The diffusion model's section of the model card."""

from typing import Any

from tokenizers import Tokenizer

from engine.training import denoise
from engine.training.diffusion_eval import DRAFT_LENGTH, HOLE_LENGTH
from engine.training.documents import IM_START, turn
from engine.training.tokenizer import STOP_IDS

ANSWER_TOKENS = 64
BLOCK_LENGTH = 32
THRESHOLD = 0.9
PROMPTS = (
    "I want to book a table for two at an Italian restaurant in San Jose tonight.",
    "What will the weather be like in Chicago tomorrow?",
    "I would like a large latte with oat milk, please.",
)
HOLES = (
    ("Once upon a time, there was a little", 12, " and they played in the park all day."),
    ("One day, Tom and his mom went to the", 8, ". Tom was very happy."),
)
WHAT = """\
## The diffusion model

A block-diffusion language model of the verifier's shape, trained from the verifier's weights; its
weights are those of a plain `Qwen3ForCausalLM`. A block is the last known token, then masks and
known tokens that all see each other and the text before; the row before a mask predicts it. The
text before is read causally, so the model still predicts next tokens. It drafts without the
verifier's hidden states (DEER), writes blocks or whole canvases, and fills holes.
"""


def diffusion_section(model: Any, tokenizer: Tokenizer, figures: dict[str, Any]) -> str:
    """Markdown, from the key "diffusion" of `evaluation.json` and from what the model writes."""
    return "\n".join(
        (WHAT, _figures(figures), _answers(model, tokenizer), _holes(model, tokenizer))
    )


def _figures(figures: dict[str, Any]) -> str:
    nats = figures["masked_nats"]
    shares = [name for name in nats if name not in ("hole", "no_suffix")]
    greedy, sampled = (figures[f"mean_committed_t{t}"]["all"]["mean"] for t in (0, 1))
    lines = [
        "| on held-out text | |",
        "|---|---|",
        f"| perplexity of its next-token side | {figures['perplexity']['all']:.2f} |",
        *(
            f"| nats a masked token, {float(s):.0%} of a block masked | {nats[s]:.2f} |"
            for s in shares
        ),
        f"| nats a token of a hole of {HOLE_LENGTH}, without what follows | "
        f"{nats['no_suffix']:.2f} |",
        f"| the same with what follows | {nats['hole']:.2f} |",
        f"| committed a verify forward, {DRAFT_LENGTH} drafts of one pass, T = 0 | {greedy:.2f} |",
        f"| the same at T = 1 | {sampled:.2f} |",
        *(_semi_ar_line(row) for row in figures["semi_ar"]),
    ]
    return "\n".join(lines) + "\n"


def _semi_ar_line(row: dict[str, float]) -> str:
    return (
        f"| tokens a forward in blocks of {row['block_length']:g}, threshold {row['threshold']:g} "
        f"(the verifier's perplexity of them) | {row['tokens_a_forward']:.2f} "
        f"({row['verifier_perplexity']:.2f}) |"
    )


def _answers(model: Any, tokenizer: Tokenizer) -> str:
    lines = [f"Answers in blocks of {BLOCK_LENGTH}, tokens above {THRESHOLD:.0%} at once:\n"]
    for prompt in PROMPTS:
        ids = tokenizer.encode(turn(("user", prompt)) + IM_START + "assistant\n").ids
        made = denoise.semi_ar(model, ids, ANSWER_TOKENS, BLOCK_LENGTH, THRESHOLD, STOP_IDS)
        text = tokenizer.decode([t for t in made.token_ids if t not in STOP_IDS])
        note = f"{len(made.token_ids)} tokens in {made.num_forwards} forwards."
        lines.append(f"````text\n> {prompt}\n{text}\n````\n{note}\n")
    return "\n".join(lines)


def _holes(model: Any, tokenizer: Tokenizer) -> str:
    lines = ["Holes, what it wrote in brackets:\n"]
    for before, length, after in HOLES:
        prefix, suffix = tokenizer.encode(before).ids, tokenizer.encode(after).ids
        made = denoise.infill(model, prefix, length, suffix, THRESHOLD)
        text = f"{before}[{tokenizer.decode(made.token_ids)}]{after}"
        lines.append(f"````text\n{text}\n````\n{length} tokens in {made.num_forwards} forwards.\n")
    return "\n".join(lines)
