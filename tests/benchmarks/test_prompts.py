"""Prompts: the same for the same seed, chat-formed, and cut where an answer is due."""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.options import Options
from benchmarks.prompts import Prompt, PromptFileError, generate, prompts

DIALOGUE = {
    "src": "talk",
    "messages": [
        {"role": "user", "content": "A table, please."},
        {"role": "assistant", "content": "For how many?"},
        {"role": "user", "content": "Two."},
        {"role": "assistant", "content": "Done."},
    ],
}


def test_a_seed_gives_the_same_prompts_and_another_seed_others() -> None:
    first, again, other = (list(islice(generate(seed), 40)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_every_domain_comes_once_before_any_comes_twice() -> None:
    domains = [prompt.domain for prompt in islice(generate(0), 18)]
    assert len(set(domains[:9])) == 9
    assert sorted(domains[:9]) == sorted(domains[9:])


def test_in_every_conversation_the_user_begins_and_has_the_last_word() -> None:
    for prompt in islice(generate(1), 200):
        roles = [message["role"] for message in prompt.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"] * bool(roles)
        assert bool(roles) != bool(prompt.text), "a prompt is a conversation or a text"
        assert all(message["content"].strip() for message in prompt.messages)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.xz"])
def test_a_dialogue_of_a_file_ends_where_an_answer_is_due(tmp_path: Path, suffix: str) -> None:
    found = prompts(Options(data=_file(tmp_path, suffix, DIALOGUE)), 1)
    assert found[0].domain == "talk"
    assert len(found[0].messages) in (1, 3)
    assert found[0].messages[-1]["role"] == "user"


def test_a_text_of_a_file_is_to_be_continued(tmp_path: Path) -> None:
    text = "Once upon a time there was a fox who read books."
    (prompt,) = prompts(Options(data=_file(tmp_path, ".jsonl", {"text": text})), 1)
    assert prompt == Prompt("file", text=prompt.text)
    assert text.startswith(prompt.text + " ")


def test_a_small_file_is_read_again_until_there_are_enough(tmp_path: Path) -> None:
    path = _file(tmp_path, ".jsonl", {"text": "one two three four"}, DIALOGUE)
    found = prompts(Options(data=path), 5)
    assert found[0] == found[2] == found[4] != found[1]


def test_a_file_without_prompts_is_refused_by_name(tmp_path: Path) -> None:
    question = {"messages": [{"role": "user", "content": "Is nobody there?"}]}
    with pytest.raises(PromptFileError, match="documents"):
        prompts(Options(data=_file(tmp_path, ".jsonl", question)), 1)


def _file(folder: Path, suffix: str, *documents: Mapping[str, object]) -> Path:
    path = folder / f"documents{suffix}"
    text = "".join(json.dumps(document) + "\n\n" for document in documents)
    path.write_bytes(lzma.compress(text.encode()) if suffix == ".jsonl.xz" else text.encode())
    return path
