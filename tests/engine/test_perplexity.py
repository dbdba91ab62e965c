"""Perplexity by position is the mean surprise of the tokens that stand there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.nn import functional as F

from engine.training import perplexity
from engine.training.documents import END_OF_TEXT, Document
from engine.training.frozen_verifier import FrozenVerifier
from engine.training.perplexity import perplexity_by_position
from tests.engine.tiny_models import tiny_qwen3

LENGTH = 192


@pytest.fixture
def words() -> Any:
    vocabulary = {str(i): i for i in range(500)} | {END_OF_TEXT: 500, "?": 501}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


def test_rows_of_whole_documents_fill_the_context(
    words: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [Document("a", " ".join(map(str, range(i, i + 99))) + " ") for i in range(9)]
    verifier, rows = FrozenVerifier(tiny_qwen3(initializer_range=0.06)), []
    read = verifier.model.forward

    def watched(input_ids: torch.Tensor, **options: Any) -> Any:
        rows.append(input_ids)
        return read(input_ids=input_ids, **options)

    monkeypatch.setattr(verifier.model, "forward", watched)
    monkeypatch.setattr(perplexity, "ROWS_AT_ONCE", 3)
    found = perplexity_by_position(verifier, documents, words, LENGTH)
    tokens = torch.cat(rows)
    assert tokens.shape == (4, LENGTH)  # 900 tokens make so many whole rows
    assert (tokens[:, 99] == 500).all()  # each begins with a document
    logits = read(input_ids=tokens).logits
    nats = F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    spans = {"0 to 63": (0, 63), "64 to 127": (63, 127), "128 to 191": (127, 191)}
    assert found.keys() == spans.keys()
    for name, (begin, end) in spans.items():
        part = nats[:, begin:end]
        assert found[name].num_tokens == part.numel()
        assert found[name].mean_nats == pytest.approx(part.mean().item(), rel=1e-5)
