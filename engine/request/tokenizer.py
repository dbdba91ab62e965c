"""Text to token ids and back, and the bytes behind every token: a thin face over transformers."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from engine.request.errors import InvalidRequestError
from engine.request.tool_syntax import tool_syntax_of

# What a client must not get at by way of a template's variables: how a chat is rendered.
_RENDERING_SETTINGS = frozenset(
    ("messages", *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
)

BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """A model's tokenizer and chat template, read from its folder; for one thread at a time."""

    def __init__(self, path: str | Path) -> None:
        self._tokenizer: Any = _read_tokenizer(Path(path))
        if not self._tokenizer.is_fast:
            raise ValueError(f"{path} has no tokenizer.json, which dfastllm needs")
        self._backend: Any = self._tokenizer.backend_tokenizer
        added = self._tokenizer.added_tokens_decoder
        self._special_text: dict[int, str] = {
            i: token.content for i, token in added.items() if token.special
        }
        decoder = self._backend.decoder
        decoder_json = decoder.__getstate__().decode() if decoder is not None else ""
        self._is_byte_level = '"ByteLevel"' in decoder_json
        self._has_byte_pieces = '"ByteFallback"' in decoder_json
        self._byte_of_char = _byte_level_alphabet() if self._is_byte_level else {}
        # Asked for with every token that is written: the answers are kept.
        self._text_pieces: dict[int, str | None] = {}
        self._fixed_bytes: dict[int, bytes | None] = {}
        self._bos_prefix = self._find_bos_prefix()
        plain = self._encode_text("a")
        self._plain_token = plain[-1] if plain else None
        self.vocab_size: int = len(self._tokenizer)
        self.mask_token_id: int | None = self._tokenizer.mask_token_id
        self.tool_syntax: str = tool_syntax_of(self._tokenizer)
        self.eos_token_ids: frozenset[int] = self._find_eos(path)

    def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
        """The ids of a completion prompt.

        Special tokens written in the text become special: a raw prompt is all the caller's own, and
        hand-written chat markup depends on it. Of the tokenizer's own additions only a leading
        BOS is taken (once), for an EOS after the prompt would end what is to be continued.
        """
        token_ids = self._encode_text(text)
        if not add_bos or token_ids[: len(self._bos_prefix)] == self._bos_prefix:
            return token_ids
        return self._bos_prefix + token_ids

    def encode_continuation(self, text: str, param: str) -> list[int]:
        """The ids of a text that stands behind another; `param` is the field that it came from.

        Tokenizers of the kind that puts a space before every text are shown a line break first.
        """
        if not self._is_byte_level and text:
            before = self._encode_text("\n")
            both = self._encode_text("\n" + text, param)
            if both[: len(before)] == before:
                return both[len(before) :]
        return self._encode_text(text, param)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        *,
        tools: list[dict[str, Any]] | None = None,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The ids of a conversation, up to where the assistant's next answer begins.

        `variables` are the template's own. Special tokens inside a message stay plain text: what
        one party says must not be able to end its turn and speak for another.
        """
        if not self._tokenizer.chat_template:
            message = "this model has no chat template; use /v1/completions"
            raise InvalidRequestError(message, param="messages", code="no_chat_template")
        variables = variables or {}
        if taken := _RENDERING_SETTINGS.intersection(variables):
            message = f"{min(taken)!r} is no variable of the chat template"
            raise InvalidRequestError(message, param="chat_template_kwargs")
        try:
            token_ids: list[int] = self._tokenizer.apply_chat_template(
                list(messages),
                tools=tools or None,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                sanitize_control_tokens=True,
                return_dict=False,
                **variables,
            )
        # Templates are programs of the model's author, and refuse what they do not like by
        # raise_exception, or by tripping over a missing role or key.
        except (TemplateError, ValueError, TypeError) as error:
            message = f"the model's chat template refused the messages: {error}"
            raise InvalidRequestError(message, param="messages") from error
        return token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the tokens; special tokens, and ids of no token, render as nothing."""
        text: str = self._backend.decode(list(token_ids), skip_special_tokens=True)
        return text

    def describe(self) -> dict[str, Any]:
        """Names of the special tokens, and the chat template, as checkpoints spell them."""
        names = ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template")
        facts = {name: getattr(self._tokenizer, name) for name in names}
        return {"tokenizer_class": type(self._tokenizer).__name__, **facts}

    def is_text(self, token_id: int) -> bool:
        """False for special tokens and for ids by which a model's vocabulary was padded."""
        return self._text_piece(token_id) is not None

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds in the middle of a text; of a special token its name."""
        special = self._special_text.get(token_id)
        if special is not None:
            return special.encode()
        return self.continuation_bytes(self._plain_token, token_id)

    def continuation_bytes(self, previous: int | None, token_id: int) -> bytes:
        """What a token adds to a text whose last token (of those that render) is `previous`.

        Byte-level tokens are bytes whatever comes before. Others may lose a leading space at the
        start of a text, or gain one after a word: what two tokens decode to, less the first.
        """
        if token_id not in self._fixed_bytes:
            self._fixed_bytes[token_id] = self._find_fixed_bytes(token_id)
        fixed = self._fixed_bytes[token_id]
        if fixed is not None:
            return fixed
        if previous is None:
            return self.decode([token_id]).encode()
        before, both = self.decode([previous]), self.decode([previous, token_id])
        return both.removeprefix(before).encode()

    def _text_piece(self, token_id: int) -> str | None:
        """How the vocabulary spells a token; None where it is no text."""
        if token_id not in self._text_pieces:
            is_special = token_id in self._special_text
            piece = None if is_special else self._backend.id_to_token(token_id)
            self._text_pieces[token_id] = piece
        return self._text_pieces[token_id]

    def _find_fixed_bytes(self, token_id: int) -> bytes | None:
        """What a token adds whatever comes before; None where that makes a difference."""
        piece = self._text_piece(token_id)
        if piece is None:
            return b""
        if self._is_byte_level:
            return self._byte_level_bytes(piece)
        if self._has_byte_pieces and (match := BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        return None

    def _byte_level_bytes(self, piece: str) -> bytes:
        """A piece spelled in the byte alphabet; one that is not (an added token) is its text."""
        try:
            return bytes([self._byte_of_char[char] for char in piece])
        except KeyError:
            return piece.encode()

    def _encode_text(self, text: str, param: str = "prompt") -> list[int]:
        try:
            token_ids: list[int] = self._tokenizer.encode(
                text, add_special_tokens=False, split_special_tokens=False, verbose=False
            )
        except (TypeError, UnicodeEncodeError) as error:
            message = "the text holds a half of a surrogate pair and so is not valid Unicode"
            raise InvalidRequestError(message, param=param) from error
        return token_ids

    def _find_bos_prefix(self) -> list[int]:
        """[BOS] where the tokenizer's own rule puts it before a text, else []."""
        with_special: list[int] = self._tokenizer.encode("a", add_special_tokens=True)
        bos = self._tokenizer.bos_token_id
        return [bos] if bos is not None and with_special[:1] == [bos] else []

    def _find_eos(self, path: str | Path) -> frozenset[int]:
        """A chat model may have several; only its generation_config.json lists them all."""
        try:
            eos = GenerationConfig.from_pretrained(str(path)).eos_token_id
        except OSError:
            eos = None
        if eos is None:
            eos = self._tokenizer.eos_token_id
        if eos is None:
            return frozenset()
        return frozenset(eos if isinstance(eos, list) else [eos])


def _read_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer; where it names code of its own, its files are read without it.

    Dream's class is Qwen2's under another name, and its folder has Qwen2's files.
    """
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if "AutoTokenizer" not in config.get("auto_map", {}):
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(str(folder))
    if config.get("tokenizer_class") == "DreamTokenizer":
        return Qwen2Tokenizer.from_pretrained(str(folder))
    raise ValueError(f"{folder} has no tokenizer.json, and the code that it names is not run")


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 as itself, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + place): byte for place, byte in enumerate(others)}
