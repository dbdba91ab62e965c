"""Training documents: JSON lines holding `text` or `messages` and their source, or plain text."""

import json
import lzma
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

END_OF_TEXT = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
PIECE_CHARACTERS = 2000  # plain text has no documents of its own; paragraphs stay whole


@dataclass(frozen=True)
class Document:
    """One text or one dialogue, and the source it came from."""

    source: str
    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()

    def render(self) -> str:
        """The document as the verifier reads it: text, or ChatML, closed by the end of text."""
        if not self.messages:
            return self.text + END_OF_TEXT
        return "".join(map(turn, self.messages)) + END_OF_TEXT

    def prompts(self) -> list[str]:
        """For a dialogue: everything before each assistant turn, up to where the answer begins."""
        opened = IM_START + "assistant\n"
        heads, read = [], ""
        for message in self.messages:
            if message[0] == "assistant":
                heads.append(read + opened)
            read += turn(message)
        return heads


def turn(message: tuple[str, str]) -> str:
    """One ChatML turn, as the chat template writes it."""
    role, content = message
    return f"{IM_START}{role}\n{content}{IM_END}\n"


def read_documents(paths: Iterable[str | Path]) -> Iterator[Document]:
    """All documents of all files, in their order; raises ValueError naming the file and line."""
    for path in map(Path, paths):
        try:
            with _open_text(path) as lines:
                if path.name.removesuffix(".xz").endswith(".txt"):
                    yield from _pieces(lines, path.name.split(".")[0])
                else:
                    yield from _json_lines(lines, path)
        except (EOFError, lzma.LZMAError) as error:
            raise ValueError(f"{path} is cut off or broken: {error}") from error


def source_weight(source: str, weights: dict[str, float]) -> float:
    """How often a document is read in an epoch: its source's weight, else its family's, else 1."""
    return weights.get(source, weights.get(source.split("/")[0], 1.0))


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _json_lines(lines: Iterable[str], path: Path) -> Iterator[Document]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield _parse(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}, line {number} is no document: {error!r}") from error


def _pieces(lines: Iterable[str], source: str) -> Iterator[Document]:
    """Paragraphs of a plain text, as many together as make a piece."""
    piece = ""
    for line in lines:
        piece += line
        # A text without empty lines is cut at any line, only later.
        if len(piece) >= (2 if line.strip() else 1) * PIECE_CHARACTERS:
            yield Document(source, piece.strip())
            piece = ""
    if piece.strip():
        yield Document(source, piece.strip())


def _parse(raw: dict[str, Any]) -> Document:
    messages = tuple((str(m["role"]), m["content"]) for m in raw.get("messages", ()))
    document = Document(raw.get("src", "unnamed"), raw.get("text", ""), messages)
    contents = (document.text, *(content for _, content in messages))
    if not all(isinstance(content, str) for content in contents):
        raise ValueError("text and content must be strings")
    if not any(contents):
        raise ValueError("neither `text` nor `messages`")
    return document
