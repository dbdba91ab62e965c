"""Ten fixed prompts and what the verifier answers: all that a model card can prove."""

from engine.training.acceptance import COUPLED, Text, accepted_drafts, write_texts
from engine.training.documents import IM_START, turn
from engine.training.drafts import DFlashProposer
from engine.training.tokenizer import STOP_IDS
from engine.training.trained import Trained

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


def answers(trained: Trained) -> str:
    """Greedy answers; with a drafter, also what a verify forward committed of each."""
    opened = IM_START + "assistant\n"
    texts = [turn(("user", p)) + opened for p in CHAT_PROMPTS] + list(TEXT_PROMPTS)
    prompts = [("", trained.tokenizer.encode(text).ids) for text in texts]
    proposer = DFlashProposer(trained.drafter, trained.verifier) if trained.drafter else None
    beyond = proposer.num_drafts if proposer else 1
    written = write_texts(trained.verifier, prompts, 0.0, ANSWER_TOKENS, STOP_IDS, beyond)
    lines = [f"## Ten prompts, at temperature 0, at most {ANSWER_TOKENS} tokens\n"]
    for prompt, answer in zip((*CHAT_PROMPTS, *TEXT_PROMPTS), written, strict=True):
        text = trained.tokenizer.decode([t for t in answer.outputs if t not in STOP_IDS])
        note = f"{answer.num_outputs} tokens"
        if proposer is not None:
            note += f", {_mean_committed(trained, proposer, answer):.2f} a verify forward"
        lines += [f"Prompt:\n{_fenced(prompt)}", f"Answer:\n{_fenced(text)}", f"{note}.\n"]
    return "\n".join(lines)


def _mean_committed(trained: Trained, proposer: DFlashProposer, answer: Text) -> float:
    depth = proposer.num_drafts
    rounds = accepted_drafts(trained.verifier, proposer, [answer], [COUPLED], [depth])
    return rounds[COUPLED][depth]["all"].mean_committed


def _fenced(text: str) -> str:
    return f"````text\n{text}\n````\n"
