"""Stage 2: the packed corpus, and an endless, resumable reader of training rows from it."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from engine.training.documents import Document, source_weight

TOKENS = "tokens.u16"
OFFSETS = "offsets.npy"
SOURCES = "sources.json"
BATCH = 1024


@dataclass(frozen=True)
class Corpus:
    """All documents end to end as token ids; document i is `tokens[offsets[i]:offsets[i + 1]]`."""

    tokens: NDArray[np.uint16]
    offsets: NDArray[np.int64]
    sources: list[str]

    def document(self, index: int) -> NDArray[np.uint16]:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


def pack(documents: Iterable[Document], tokenizer: Tokenizer, folder: Path) -> Corpus:
    """Tokenize once to disk; every later stage maps the file."""
    folder.mkdir(parents=True, exist_ok=True)
    offsets, sources = [0], []
    with (folder / TOKENS).open("wb") as file:
        for batch in _batches(documents):
            encoded = tokenizer.encode_batch([d.render() for d in batch])
            for document, item in zip(batch, encoded, strict=True):
                np.asarray(item.ids, np.uint16).tofile(file)
                offsets.append(offsets[-1] + len(item.ids))
                sources.append(document.source)
    np.save(folder / OFFSETS, np.asarray(offsets, np.int64))
    # Written last: a folder that has it is whole.
    (folder / SOURCES).write_text(json.dumps(sources), "utf-8")
    return load_corpus(folder)


def load_corpus(folder: Path) -> Corpus:
    """Map a packed corpus."""
    tokens = np.memmap(folder / TOKENS, np.uint16, "r")
    sources = json.loads((folder / SOURCES).read_text("utf-8"))
    return Corpus(tokens, np.load(folder / OFFSETS), sources)


def is_packed(folder: Path) -> bool:
    return (folder / SOURCES).exists()


@dataclass
class RowReader:
    """Rows of whole documents in a new order each epoch; `state` is all it takes to go on.

    A row begins with a document, as a request does. The document that a row cuts is not continued:
    the next epoch cuts another one.
    """

    corpus: Corpus
    weights: dict[str, float]
    seed: int
    epoch: int = 0
    cursor: int = 0

    def __post_init__(self) -> None:
        self._order = self._shuffled(self.epoch)

    @property
    def state(self) -> dict[str, int]:
        return {"epoch": self.epoch, "cursor": self.cursor}

    def restore(self, state: dict[str, int]) -> None:
        self.epoch, self.cursor = state["epoch"], state["cursor"]
        self._order = self._shuffled(self.epoch)

    def batch(self, rows: int, length: int) -> Tensor:
        """The next rows as token ids [rows, length]."""
        return torch.from_numpy(np.stack([self._row(length) for _ in range(rows)]).astype(np.int64))

    def _row(self, length: int) -> NDArray[np.uint16]:
        parts: list[NDArray[np.uint16]] = []
        missing = length
        while missing > 0:
            part = self.corpus.document(self._next())[:missing]
            parts.append(part)
            missing -= len(part)
        return np.concatenate(parts)

    def _next(self) -> int:
        if self.cursor >= len(self._order):
            self.epoch, self.cursor = self.epoch + 1, 0
            self._order = self._shuffled(self.epoch)
        self.cursor += 1
        return int(self._order[self.cursor - 1])

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        """Each document as often as its source weighs; a fraction is drawn anew each epoch."""
        random = np.random.default_rng((self.seed, epoch))
        weight = np.asarray([source_weight(s, self.weights) for s in self.corpus.sources])
        times = np.floor(weight + random.random(len(weight))).astype(np.int64)
        order: NDArray[np.int64] = np.repeat(np.arange(len(weight)), times)
        random.shuffle(order)
        if not len(order):
            raise ValueError("no document is left: every source in the data weighs 0")
        return order


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    iterator = iter(documents)
    while batch := list(islice(iterator, BATCH)):
        yield batch
