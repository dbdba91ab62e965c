"""An own verifier's rollouts, in shards that are written once, and some of the texts themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.training.documents import Document
from engine.training.lessons import Lessons
from engine.training.own_verifier import OptionError, OwnVerifier
from engine.training.rollouts import FILE, Rollouts, load_rollouts, roll_out, save_rollouts

SHARD = 64  # rollouts that are lost, at most, when a run is killed
ROLLOUTS_A_TEXT = 3  # a quarter of what is learnt from is the user's text as it stands


@dataclass(frozen=True)
class RolloutPlan:
    """How many rollouts, how long, and how many at once."""

    count: int = 3000
    new_tokens: int = 128
    batch_size: int = 32


def own_rollouts(
    verifier: OwnVerifier,
    lessons: Lessons,
    documents: list[Document],
    plan: RolloutPlan,
    seed: int,
    folder: Path,
) -> Rollouts:
    """What the drafter learns from; what the folder holds already is not made again."""
    if (folder / FILE).exists():
        return load_rollouts(folder)
    asked = lessons.prompts(documents, plan.count, seed)
    prompts: list[list[int]] = []
    answers: list[list[int]] = []
    for begin in range(0, len(asked), SHARD):
        part = folder / f"from-{begin}"
        if not (part / FILE).exists():
            _write_shard(verifier, asked[begin : begin + SHARD], plan, seed + begin, part)
        more_prompts, more_answers = load_rollouts(part).pairs()
        prompts += more_prompts
        answers += more_answers
    if not answers:
        raise OptionError("--data: the verifier ended every answer at once")
    length = lessons.max_prompt + plan.new_tokens
    for ids in lessons.texts(documents, len(answers) // ROLLOUTS_A_TEXT, length):
        prompts.append(ids[:1])
        answers.append(ids[1:])
    return save_rollouts(prompts, answers, folder)


def _write_shard(
    verifier: OwnVerifier, prompts: list[list[int]], plan: RolloutPlan, seed: int, folder: Path
) -> None:
    stop = verifier.tokenizer.eos_token_ids
    answers = roll_out(verifier.frozen, prompts, plan.new_tokens, plan.batch_size, stop, seed)
    save_rollouts(prompts, answers, folder)
