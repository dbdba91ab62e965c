"""Stage 7: the figures of a pair of models on held-out text."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from engine.training.acceptance import COUPLED, Text, accepted_drafts, write_texts
from engine.training.documents import Document
from engine.training.draft_cost import measure_cost
from engine.training.drafts import Proposer
from engine.training.frozen_verifier import FrozenVerifier
from engine.training.occupancy import Acceptance
from engine.training.perplexity import Perplexity, perplexity_by_position, perplexity_by_source
from engine.training.tokenizer import STOP_IDS

TEMPERATURES = (0.0, 1.0)


def evaluate_verifier(
    verifier: FrozenVerifier, documents: list[Document], tokenizer: Tokenizer, max_length: int
) -> dict[str, Any]:
    """What the verifier alone makes of the documents."""
    given = (verifier, documents, tokenizer, max_length)
    found = {
        "perplexity": perplexity_by_source(*given),
        "perplexity_by_position": perplexity_by_position(*given),
    }
    return {
        key: {name: _surprise(perplexity) for name, perplexity in by_name.items()}
        for key, by_name in found.items()
    }


def write_answers(
    verifier: FrozenVerifier,
    prompts: list[tuple[str, list[int]]],
    new_tokens: int,
    longest_draft: int,
) -> dict[float, list[Text]]:
    """By temperature; every drafter of this verifier can be judged by them."""
    return {
        t: write_texts(verifier, prompts, t, new_tokens, STOP_IDS, longest_draft)
        for t in TEMPERATURES
    }


def committed_by_source(
    verifier: FrozenVerifier, proposer: Proposer, answers: dict[float, list[Text]]
) -> dict[str, Any]:
    """Tokens committed a verify forward under the coupled rule, whole blocks drafted."""
    depth = proposer.num_drafts
    figures = {}
    for temperature, texts in answers.items():
        rounds = accepted_drafts(verifier, proposer, texts, [COUPLED], [depth])[COUPLED][depth]
        figures[f"mean_committed_t{temperature:g}"] = {
            name: _short(rounds[name]) for name in sorted(rounds)
        }
    return figures


def evaluate_cost(verifier: Path, drafter: Path, device: torch.device) -> dict[str, Any]:
    """Both as `serve` runs them on this machine."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    return asdict(measure_cost(verifier, drafter, dtype, device))


def _surprise(found: Perplexity) -> dict[str, float]:
    return {
        "num_tokens": found.num_tokens,
        "nats": round(found.mean_nats, 4),
        "perplexity": round(found.perplexity, 3),
    }


def _short(rounds: Acceptance) -> dict[str, float]:
    return {"num_verifies": round(rounds.num_verifies), "mean": round(rounds.mean_committed, 3)}
