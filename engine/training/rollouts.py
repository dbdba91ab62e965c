"""Stage 4: the verifier's own outputs, half greedy and half sampled, as the drafter's lessons."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache

from engine.training.documents import Document, source_weight
from engine.training.frozen_verifier import FrozenVerifier
from engine.training.tokenizer import END_OF_TEXT_ID

FILE = "rollouts.npz"
# A rollout goes on after <|im_end|>: the user's turns that follow are the verifier's own text too.
STOP_ROLLOUT = frozenset((END_OF_TEXT_ID,))
PROMPT_TOKENS = 192
TEXT_PROMPT = (4, 48)  # a text is continued from a head of so many tokens
# (number of the new token, logits [B, V]) -> next token ids [B]
Choose = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Rollouts:
    """Whole sequences end to end, sorted by length, and where the verifier's part begins."""

    tokens: NDArray[np.unsignedinteger]
    offsets: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    def sequence(self, index: int) -> NDArray[np.unsignedinteger]:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def pairs(self) -> tuple[list[list[int]], list[list[int]]]:
        """(prompts, answers), as they were given to `save_rollouts`, but for their order."""
        sequences = [self.sequence(i).tolist() for i in range(len(self))]
        cut = list(zip(sequences, self.starts.tolist(), strict=True))
        return [s[:start] for s, start in cut], [s[start:] for s, start in cut]

    def batch(self, count: int, random: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`count` neighbours in length: token ids [B, L], first anchor [B], length [B]."""
        begin = int(random.integers(0, max(1, len(self) - count + 1)))
        chosen = [self.sequence(i) for i in range(begin, min(begin + count, len(self)))]
        lengths = torch.tensor([len(s) for s in chosen])
        tokens = torch.zeros(len(chosen), int(lengths.max()), dtype=torch.int64)
        for row, sequence in zip(tokens, chosen, strict=True):
            row[: len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
        starts = torch.from_numpy(self.starts[begin : begin + count])
        return tokens, starts, lengths


def save_rollouts(prompts: list[list[int]], answers: list[list[int]], folder: Path) -> Rollouts:
    """Sort by length and write one file; a row without two new tokens teaches nothing."""
    pairs = [(p, a) for p, a in zip(prompts, answers, strict=True) if len(a) > 1]
    pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    folder.mkdir(parents=True, exist_ok=True)
    offsets = np.cumsum([0, *(len(p) + len(a) for p, a in pairs)]).astype(np.int64)
    flat = [t for p, a in pairs for t in (*p, *a)]
    tokens = np.asarray(flat, np.uint16 if max(flat, default=0) < 1 << 16 else np.uint32)
    starts = np.asarray([len(p) for p, _ in pairs], np.int64)
    part = folder / f"part-{FILE}"
    np.savez(part, tokens=tokens, offsets=offsets, starts=starts)
    part.replace(folder / FILE)
    return load_rollouts(folder)


def load_rollouts(folder: Path) -> Rollouts:
    with np.load(folder / FILE) as data:
        return Rollouts(data["tokens"], data["offsets"], data["starts"])


def choose_prompts(
    documents: list[Document],
    tokenizer: Tokenizer,
    count: int,
    weights: dict[str, float],
    random: np.random.Generator,
) -> list[list[int]]:
    """Prompts as users send them: a dialogue up to an answer, or the first words of a text."""
    weight = np.asarray([source_weight(d.source, weights) for d in documents])
    order = random.choice(len(documents), size=3 * count, p=weight / weight.sum())
    prompts: list[list[int]] = []
    for index in order:
        prompt = prompt_of(documents[index], tokenizer, random)
        if 0 < len(prompt) <= PROMPT_TOKENS:
            prompts.append(prompt)
        if len(prompts) == count:
            break
    return prompts


def prompt_of(document: Document, tokenizer: Tokenizer, random: np.random.Generator) -> list[int]:
    """One prompt of this document; empty where it has none."""
    if not document.messages:
        ids: list[int] = tokenizer.encode(document.text).ids
        return ids[: int(random.integers(*TEXT_PROMPT))]
    heads = document.prompts()
    if not heads:
        return []
    encoded: list[int] = tokenizer.encode(heads[int(random.integers(len(heads)))]).ids
    return encoded


def roll_out(
    verifier: FrozenVerifier,
    prompts: list[list[int]],
    new_tokens: int,
    batch_size: int,
    stop: frozenset[int],
    seed: int,
) -> list[list[int]]:
    """Continue all prompts; even rows of a batch greedily, odd ones sampled at temperature 1."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    generator = torch.Generator().manual_seed(seed)
    bar = tqdm(desc="rollouts", total=len(prompts))
    for chunk in _chunks(order, batch_size):
        chosen = [prompts[i] for i in chunk]
        produced = continue_batch(verifier, chosen, new_tokens, half_sampled(generator), stop)
        for index, answer in zip(chunk, produced, strict=True):
            answers[index] = answer
        bar.update(len(chunk))
    bar.close()
    return answers


def half_sampled(generator: torch.Generator) -> Choose:
    """Even rows greedy, odd rows sampled, by the Gumbel-max trick on all of them at once."""

    def choose(number: int, logits: Tensor) -> Tensor:
        noise = torch.empty(logits.shape).exponential_(generator=generator).log_().neg_()
        noise[::2] = 0
        return (logits + noise.to(logits.device)).argmax(-1)

    return choose


@torch.inference_mode()
def continue_batch(
    verifier: FrozenVerifier,
    prompts: list[list[int]],
    new_tokens: int,
    choose: Choose,
    stop: frozenset[int],
) -> list[list[int]]:
    """Plain batched decoding; an answer keeps the stop token that ended it."""
    decoder = _LeftPadded(verifier, prompts, new_tokens)
    answers: list[list[int]] = [[] for _ in prompts]
    done = [False] * len(prompts)
    logits = decoder.prefill()
    for number in range(new_tokens):
        tokens = choose(number, logits)
        for i, token in enumerate(tokens.tolist()):
            if not done[i]:
                answers[i].append(token)
                done[i] = token in stop
        if all(done) or number == new_tokens - 1:
            break
        logits = decoder.step(tokens)
    return answers


class _LeftPadded:
    """A batch of sequences of unequal length, their last tokens in one column.

    The model makes its own masks from which columns are real: sliding windows are its business.
    """

    def __init__(self, verifier: FrozenVerifier, prompts: list[list[int]], new_tokens: int) -> None:
        self._verifier = verifier
        width = max(map(len, prompts))
        rows = [[0] * (width - len(p)) + p for p in prompts]
        self._tokens = torch.tensor(rows, device=verifier.device)
        self._padding = torch.tensor([width - len(p) for p in prompts], device=verifier.device)
        column = torch.arange(width + new_tokens, device=verifier.device)
        self._real = column >= self._padding[:, None]  # [B, width + new_tokens]
        self._cache = DynamicCache(config=verifier.config)
        self._seen = 0

    def prefill(self) -> Tensor:
        return self._forward(self._tokens)

    def step(self, token_ids: Tensor) -> Tensor:
        return self._forward(token_ids[:, None])

    def _forward(self, token_ids: Tensor) -> Tensor:
        begin, self._seen = self._seen, self._seen + token_ids.shape[1]
        columns = torch.arange(begin, self._seen, device=token_ids.device)
        out = self._verifier.model.get_decoder()(
            input_ids=token_ids,
            attention_mask=self._real[:, : self._seen],
            position_ids=(columns - self._padding[:, None]).clamp(min=0),
            past_key_values=self._cache,
            use_cache=True,
        )
        return self._verifier.target_logits(out.last_hidden_state[:, -1])


def _chunks(items: list[int], size: int) -> Iterator[list[int]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
