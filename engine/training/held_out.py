"""Prompts from documents that were never trained on."""

import math
from collections import defaultdict

import numpy as np
from tokenizers import Tokenizer

from engine.training.documents import Document
from engine.training.rollouts import PROMPT_TOKENS, prompt_of


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
