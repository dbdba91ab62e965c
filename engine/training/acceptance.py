"""Tokens committed a verify forward, from texts that the verifier has written once.

Drafting changes no output (`occupancy` says why), so it need not run live: the verifier writes with
the engine's own sampler and noise, the drafter then proposes at every output, and the rounds that a
server has, or would have on average, are counted for every draft length at once.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.training.drafts import Anchors, EngineDraws, Proposer, block_logits, pick_drafts
from engine.training.frozen_verifier import FrozenVerifier
from engine.training.occupancy import Acceptance, Floats, expected_rounds
from engine.training.rollouts import continue_batch

COUPLED, REJECTION = "coupled", "rejection"
RULES = (COUPLED, REJECTION)
BATCH = 32
NOTHING = -1  # the token after all that was written: no draft equals it

# rule -> draft length -> source ("all" is all of them) -> rounds
Curves = dict[str, dict[int, dict[str, Acceptance]]]


@dataclass(frozen=True)
class Text:
    """A prompt and what the verifier makes of it at one seed and temperature."""

    source: str
    prompt: list[int]
    stream: list[int]
    """The output, and then what the verifier would go on with: drafts may reach past the end."""
    num_outputs: int
    max_tokens: int
    seed: int
    temperature: float

    @property
    def outputs(self) -> list[int]:
        """What a request would have been given."""
        return self.stream[: self.num_outputs]

    def draft_lengths(self, limit: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """By anchor: no draft is made that `max_tokens` would cut, for the bonus must fit too."""
        remaining = self.max_tokens - 1 - np.arange(max(0, self.num_outputs - 1))
        return np.minimum(limit, remaining - 1)


@torch.inference_mode()
def write_texts(
    verifier: FrozenVerifier,
    prompts: Sequence[tuple[str, list[int]]],
    temperature: float,
    max_tokens: int,
    stop: frozenset[int],
    beyond: int,
) -> list[Text]:
    """Answer (source, prompt) pairs; seeds are their numbers. `beyond`: the longest draft."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i][1]))
    texts: dict[int, Text] = {}
    for begin in range(0, len(order), BATCH):
        seeds = order[begin : begin + BATCH]
        heads = [prompts[i][1] for i in seeds]
        answers = _answer(verifier, heads, seeds, temperature, max_tokens, stop)
        whole = [h + a for h, a in zip(heads, answers, strict=True)]
        lengths = [len(a) for a in answers]
        tails = _answer(verifier, whole, seeds, temperature, beyond, frozenset(), lengths)
        for i, head, answer, tail in zip(seeds, heads, answers, tails, strict=True):
            stream = (answer + tail)[:max_tokens]
            texts[i] = Text(prompts[i][0], head, stream, len(answer), max_tokens, i, temperature)
    return [texts[i] for i in range(len(prompts))]


def accepted_drafts(
    verifier: FrozenVerifier,
    proposer: Proposer,
    texts: Sequence[Text],
    rules: Sequence[str] = RULES,
    lengths: Sequence[int] | None = None,
) -> Curves:
    """The rounds of all texts, all of one temperature, under each rule at each draft length.

    The lengths are those of a fixed draft length; without any, 0 to the block's own.
    """
    limits = range(proposer.num_drafts + 1) if lengths is None else lengths
    found: Curves = {r: {k: defaultdict(Acceptance) for k in limits} for r in rules}
    for text, tables in acceptance_tables(verifier, proposer, texts, rules):
        for rule, accept in tables.items():
            for limit in limits:
                rounds = expected_rounds(accept, text.draft_lengths(limit))
                for name in (text.source, "all"):
                    found[rule][limit][name].add(rounds)
    return found


def acceptance_tables(
    verifier: FrozenVerifier, proposer: Proposer, texts: Sequence[Text], rules: Sequence[str]
) -> Iterator[tuple[Text, dict[str, Floats]]]:
    """Each text, and by rule the chance of each draft at each of its anchors [N, K - 1]."""
    ordered = sorted(texts, key=lambda text: len(text.prompt) + len(text.stream))
    for begin in range(0, len(ordered), BATCH):
        chunk = ordered[begin : begin + BATCH]
        tables = _TablesOfABatch(verifier, proposer, chunk).fill(rules)
        for i, text in enumerate(chunk):
            anchors = max(0, text.num_outputs - 1)
            yield text, {rule: table[i, :anchors] for rule, table in tables.items()}


class _TablesOfABatch:
    """One reading of some texts, and each rule's word on all blocks of them."""

    def __init__(self, verifier: FrozenVerifier, proposer: Proposer, texts: Sequence[Text]) -> None:
        device = verifier.device
        self._verifier, self._proposer, self._texts = verifier, proposer, texts
        self._temperature = texts[0].temperature
        self._draws = EngineDraws([text.seed for text in texts], self._temperature, device)
        rows = [text.prompt + text.stream for text in texts]
        tokens = torch.tensor(_right_padded(rows, 0), device=device)
        self._reading = verifier.read(tokens, proposer.taps or (0,))
        self._first = torch.tensor([len(text.prompt) for text in texts], device=device)
        self._num_anchors = torch.tensor([max(0, t.num_outputs - 1) for t in texts], device=device)
        after = [text.stream + [NOTHING] * proposer.num_drafts for text in texts]
        self._stream = torch.tensor(_right_padded(after, NOTHING), device=device)

    @torch.inference_mode()
    def fill(self, rules: Sequence[str]) -> dict[str, Floats]:
        """By rule [B, most anchors, K - 1]; what no anchor of a text stands for is 0."""
        proposer = self._proposer
        size = (len(self._texts), int(self._num_anchors.max()), proposer.num_drafts)
        tables = {rule: np.zeros(size) for rule in rules}
        own = self._own_log_probs() if REJECTION in rules and self._temperature else None
        vocab_size = self._verifier.config.vocab_size
        for anchors, logits in block_logits(
            proposer, self._reading, self._first, self._num_anchors, vocab_size
        ):
            at = anchors.outputs[:, None] + 1 + torch.arange(size[2], device=logits.device)
            goal = self._stream[anchors.texts[:, None], at]
            if own is None or COUPLED in rules:
                drafts = pick_drafts(logits, anchors, self._draws, proposer.markov)
                same = (drafts == goal).double()
            for rule, table in tables.items():
                if rule == REJECTION and own is not None:
                    chance = self._ratio(logits, anchors, goal, own[anchors.texts[:, None], at])
                else:
                    chance = same  # at temperature 0 both rules ask for the verifier's token
                table[anchors.texts.cpu(), anchors.outputs.cpu()] = chance.cpu().numpy()
        return tables

    def _ratio(self, logits: Tensor, anchors: Anchors, goal: Tensor, own: Tensor) -> Tensor:
        """min(1, q / p) at the text's tokens, [N, K - 1].

        A Markov head reads the text's own tokens: where a draft differs the round is over.
        """
        if (markov := self._proposer.markov) is not None:
            before = torch.cat((anchors.token_ids[:, None], goal[:, :-1]), dim=1).clamp(min=0)
            logits = logits + markov(before.flatten()).view_as(logits)
        drafter = _log_probs(logits, goal, self._temperature)
        return (drafter - own).clamp(max=0).exp().masked_fill(goal == NOTHING, 0.0)

    def _own_log_probs(self) -> Tensor:
        """log p of every token of every stream [B, S]; that of output 0 is not asked for."""
        found = torch.zeros(self._stream.shape, dtype=torch.float64, device=self._stream.device)
        for i, text in enumerate(self._texts):
            start, end = len(text.prompt), len(text.prompt) + len(text.stream) - 1
            logits = self._verifier.target_logits(self._reading.hidden[i, start:end])
            goal = self._stream[i, 1 : len(text.stream)]
            found[i, 1 : len(text.stream)] = _log_probs(logits, goal, self._temperature)
        return found


def _answer(
    verifier: FrozenVerifier,
    prompts: list[list[int]],
    seeds: list[int],
    temperature: float,
    new_tokens: int,
    stop: frozenset[int],
    first_outputs: list[int] | None = None,
) -> list[list[int]]:
    draws = EngineDraws(seeds, temperature, verifier.device)
    texts = torch.arange(len(prompts), device=verifier.device)
    first = torch.tensor(first_outputs or [0] * len(prompts), device=verifier.device)

    def choose(number: int, logits: Tensor) -> Tensor:
        return draws(logits, texts, first + number)

    return continue_batch(verifier, prompts, new_tokens, choose, stop)


def _log_probs(logits: Tensor, token_ids: Tensor, temperature: float) -> Tensor:
    """logits [..., V], token ids [...] -> log-probabilities [...], float64."""
    spread = (logits.float() / temperature).log_softmax(-1)
    return spread.gather(-1, token_ids.clamp(min=0)[..., None])[..., 0].double()


def _right_padded(rows: list[list[int]], filler: int) -> list[list[int]]:
    longest = max(map(len, rows))
    return [row + [filler] * (longest - len(row)) for row in rows]
