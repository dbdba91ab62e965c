"""Whether two folders mean the same tokens by the same ids, as far as their tokenizer.json say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from engine.models.checkpoint import UnsupportedModelError


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id: all of them, and which ids are of the model itself, not added to it."""

    tokens: dict[int, str]
    base_ids: frozenset[int]


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Of tokenizer.json; None where there is none, or none of a kind that lists its tokens."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    raw = json.loads(file.read_text("utf-8"))
    base = raw.get("model", {}).get("vocab")
    if isinstance(base, list):  # Unigram: pieces with their scores, in the order of their ids
        base = {piece: index for index, (piece, _) in enumerate(base)}
    if not isinstance(base, dict):
        return None
    added = {token["id"]: token["content"] for token in raw.get("added_tokens", [])}
    tokens = {index: piece for piece, index in base.items()} | added
    return Vocabulary(tokens, frozenset(base.values()) - added.keys())


def check_same_tokens(folder: Path, verifier: Path) -> None:
    """Raise `UnsupportedModelError` where an id means one token here and another to the verifier.

    Tokens added beyond the verifier's own, as a mask is, may differ: it never writes them.
    """
    own, other = read_vocabulary(folder), read_vocabulary(verifier)
    if own is None or other is None:
        return
    both = own.tokens.keys() & other.tokens.keys()
    differing = {i for i in both if own.tokens[i] != other.tokens[i]}
    differing |= (own.base_ids - other.tokens.keys()) | (other.base_ids - own.tokens.keys())
    if differing:
        first = min(differing)
        here, there = (x.tokens.get(first) for x in (own, other))
        raise UnsupportedModelError(
            f"{folder} has another tokenizer than the verifier {verifier}: {len(differing)} tokens "
            f"differ; {first} is {here!r}, the verifier's is {there!r}"
        )
