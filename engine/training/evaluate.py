"""Stage 6: held-out perplexity by source, and tokens committed a verify forward by exact replay.

Under the coupled rule the output is a function of (prefix, seed, position) alone, so drafting need
not run live: the verifier writes its output once, the drafter then proposes at every position, and
walking from anchor to anchor gives the very rounds that a server would have had.
"""

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from engine.decoding.noise import gumbel
from engine.models.dflash import DFlashDrafter
from engine.training.blocks import block_hidden
from engine.training.documents import Document
from engine.training.frozen_verifier import FrozenVerifier
from engine.training.rollouts import PROMPT_TOKENS, Choose, continue_batch, prompt_of

ANCHORS_AT_ONCE = 32


@dataclass(frozen=True)
class Perplexity:
    """Mean surprise of a set of held-out tokens."""

    num_tokens: int
    nats: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats / max(1, self.num_tokens))


@torch.inference_mode()
def perplexity_by_source(
    verifier: FrozenVerifier, documents: list[Document], tokenizer: Tokenizer, max_length: int
) -> dict[str, Perplexity]:
    """Every document alone from position 0, cut at `max_length`; the key "all" is all of them."""
    totals: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    device = verifier.device
    for document in documents:
        ids = tokenizer.encode(document.render()).ids[:max_length]
        tokens = torch.tensor([ids], device=device)
        logits = verifier.model(input_ids=tokens, use_cache=False).logits[0, :-1]
        nats = F.cross_entropy(logits.float(), tokens[0, 1:], reduction="sum").item()
        for name in (document.source, "all"):
            totals[name][0] += len(ids) - 1
            totals[name][1] += nats
    return {name: Perplexity(int(n), nats) for name, (n, nats) in sorted(totals.items())}


@dataclass
class Acceptance:
    """Rounds of draft and verify, and what they committed."""

    num_verifies: int = 0
    num_committed: int = 0

    @property
    def mean_committed(self) -> float:
        return self.num_committed / max(1, self.num_verifies)


def acceptance_by_source(
    verifier: FrozenVerifier,
    drafter: DFlashDrafter,
    prompts: list[tuple[str, list[int]]],
    temperature: float,
    new_tokens: int,
    stop: frozenset[int],
    batch_size: int = 32,
) -> dict[str, Acceptance]:
    """Replay the coupled rule over all prompts; seeds are the prompts' numbers."""
    totals: dict[str, Acceptance] = defaultdict(Acceptance)
    ordered = sorted(enumerate(prompts), key=lambda item: len(item[1][1]))
    for begin in range(0, len(ordered), batch_size):
        chunk = ordered[begin : begin + batch_size]
        seeds = torch.tensor([number for number, _ in chunk])
        heads = [prompt for _, (_, prompt) in chunk]
        choose = coupled(seeds, temperature)
        answers = continue_batch(verifier, heads, new_tokens, choose, stop)
        drafts = drafts_everywhere(verifier, drafter, heads, answers, seeds, temperature)
        for (_, (source, _)), answer, draft in zip(chunk, answers, drafts, strict=True):
            for name in (source, "all"):
                replay(answer, draft, totals[name])
    return dict(sorted(totals.items()))


def coupled(seeds: Tensor, temperature: float) -> Choose:
    """Output t of each row by its own noise: argmax(logits / temperature + G[t])."""

    def choose(number: int, logits: Tensor) -> Tensor:
        positions = torch.full_like(seeds, number)
        return coupled_argmax(logits, seeds, positions, temperature)

    return choose


def coupled_argmax(logits: Tensor, seeds: Tensor, positions: Tensor, temperature: float) -> Tensor:
    """logits [R, V], seeds and output positions [R] -> tokens [R]."""
    if temperature == 0:
        return logits.argmax(-1)
    seeds, positions = seeds.to(logits.device), positions.to(logits.device)
    zeros = torch.zeros_like(seeds)
    noise = gumbel(seeds, zeros, zeros, positions, logits.shape[-1])
    return (logits.float() / temperature + noise).argmax(-1)


def replay(answer: list[int], drafts: list[list[int]], total: Acceptance) -> None:
    """Walk the rounds; output 0 came with the prefill, and `drafts[t]` is anchored at output t."""
    at = 0
    while at < len(answer) - 1:
        rest = answer[at + 1 :]
        accepted = 0
        while accepted < min(len(drafts[at]), len(rest)) and drafts[at][accepted] == rest[accepted]:
            accepted += 1
        committed = min(accepted + 1, len(rest))
        total.num_verifies += 1
        total.num_committed += committed
        at += committed


@torch.inference_mode()
def drafts_everywhere(
    verifier: FrozenVerifier,
    drafter: DFlashDrafter,
    prompts: list[list[int]],
    answers: list[list[int]],
    seeds: Tensor,
    temperature: float,
) -> list[list[list[int]]]:
    """For every row and every output t: the draft that a block anchored at output t proposes."""
    device = verifier.device
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    rows = [(p + a + [0] * longest)[:longest] for p, a in zip(prompts, answers, strict=True)]
    reading = verifier.read(torch.tensor(rows, device=device), drafter.config.target_layer_ids)
    first = torch.tensor([len(p) for p in prompts], device=device)
    found: list[list[list[int]]] = [[] for _ in prompts]
    masks = drafter.config.block_size - 1
    for begin in range(0, max(map(len, answers)), ANCHORS_AT_ONCE):
        outputs = begin + torch.arange(ANCHORS_AT_ONCE, device=device)
        anchors = (first[:, None] + outputs).clamp(max=longest - 1)
        logits = verifier.head(block_hidden(drafter, verifier, reading, anchors))
        positions = outputs[None, :, None] + 1 + torch.arange(masks, device=device)
        positions = positions.expand(len(prompts), -1, -1)
        row_seeds = seeds.to(device)[:, None, None].expand_as(positions).flatten()
        flat = coupled_argmax(logits.flatten(0, 2), row_seeds, positions.flatten(), temperature)
        for row, drafts in zip(found, flat.view_as(positions).tolist(), strict=True):
            row.extend(drafts)
    return found


def held_out_prompts(
    documents: list[Document], tokenizer: Tokenizer, count: int, seed: int
) -> list[tuple[str, list[int]]]:
    """About the same number of prompts from each source, in a fixed random choice."""
    by_source: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        by_source[document.source].append(document)
    random = np.random.default_rng(seed)
    chosen: list[tuple[str, list[int]]] = []
    for source, members in sorted(by_source.items()):
        share = math.ceil(count / len(by_source))
        for index in random.permutation(len(members))[:share]:
            prompt = prompt_of(members[int(index)], tokenizer, random)
            if 0 < len(prompt) <= PROMPT_TOKENS:
                chosen.append((source, prompt))
    return chosen
