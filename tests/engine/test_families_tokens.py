"""Which tokens a folder means: pairs that differ, and tokenizers with code of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.models.causal_lm import UnsupportedModelError
from engine.models.loader import load_models
from engine.models.vocabulary import check_same_tokens, read_vocabulary
from engine.request.tokenizer import Tokenizer
from tests.engine.tiny_families import DREAM, MASK
from tests.engine.tiny_models import save_pair, tiny_drafter, tiny_qwen3
from tests.engine.tiny_tokenizers import make_byte_level, make_metaspace

CPU = torch.device("cpu")


def edit(folder: Path, change: Any) -> None:
    file = folder / "tokenizer.json"
    raw = json.loads(file.read_text("utf-8"))
    change(raw)
    file.write_text(json.dumps(raw), "utf-8")


def add(raw: dict[str, Any], content: str) -> None:
    last = raw["added_tokens"][-1]
    raw["added_tokens"].append(last | {"id": last["id"] + 1, "content": content})


def swap(raw: dict[str, Any]) -> None:
    vocab = raw["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def rename(raw: dict[str, Any]) -> None:
    raw["added_tokens"][-1]["content"] = "<ponder>"


def test_tokens_beyond_the_verifiers_own_may_differ(tmp_path: Path) -> None:
    own, verifier = make_byte_level(tmp_path / "own"), make_byte_level(tmp_path / "verifier")
    check_same_tokens(own, verifier)
    edit(own, lambda raw: add(raw, "<|another mask|>"))
    check_same_tokens(own, verifier)
    check_same_tokens(tmp_path, verifier)  # a drafter without a tokenizer


@pytest.mark.parametrize("change", [swap, rename], ids=["swapped", "renamed"])
def test_an_id_that_means_another_token_is_named(change: Any, tmp_path: Path) -> None:
    own, verifier = make_byte_level(tmp_path / "own"), make_byte_level(tmp_path / "verifier")
    edit(own, change)
    with pytest.raises(UnsupportedModelError, match=r"another tokenizer.*the verifier's is '"):
        check_same_tokens(own, verifier)


def test_a_vocabulary_of_scored_pieces_is_read_in_its_order(tmp_path: Path) -> None:
    folder = make_metaspace(tmp_path)
    found = read_vocabulary(folder)
    assert found is not None
    tokenizer = Tokenizer(folder)
    assert found.tokens[tokenizer.encode("hello")[-1]] == "▁hello"
    assert found.tokens[1] == "<s>" and 1 not in found.base_ids


@pytest.mark.parametrize("part", ["drafter", "diffusion"])
def test_a_model_with_other_tokens_than_the_verifier_is_refused_before_it_is_loaded(
    part: str, tmp_path: Path
) -> None:
    verifier, drafter = save_pair(tmp_path, tiny_qwen3(), tiny_drafter())
    make_byte_level(verifier)
    other = drafter if part == "drafter" else DREAM.save(tmp_path / "dream", DREAM.tensors())
    make_metaspace(other)
    paths = {"drafter": None, "diffusion": None} | {part: str(other)}
    with pytest.raises(UnsupportedModelError, match=f"{other.name} has another tokenizer"):
        load_models(str(verifier), paths["drafter"], paths["diffusion"], torch.float32, CPU)


@pytest.mark.parametrize("has_json", [True, False])
def test_dreams_tokenizer_is_read_without_its_code(has_json: bool, tmp_path: Path) -> None:
    reference = Tokenizer(make_byte_level(tmp_path / "reference"))
    folder = make_byte_level(DREAM.save(tmp_path / "dream", DREAM.tensors(), mask_token_id=MASK))
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text("utf-8")) | {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
    }
    file.write_text(json.dumps(config), "utf-8")
    if not has_json:
        split_files(folder)
    found = Tokenizer(folder)
    text = "hello wor1d"
    assert found.encode(text) == reference.encode(text)
    assert found.mask_token_id == reference.mask_token_id


def split_files(folder: Path) -> None:
    """As Dream-org publishes it: vocab.json and merges.txt, added tokens beside the config."""
    raw = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(raw["model"]["vocab"]), "utf-8")
    lines = [" ".join(pair) for pair in raw["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]), "utf-8")
    added = {token["content"]: token["id"] for token in raw["added_tokens"]}
    (folder / "added_tokens.json").write_text(json.dumps(added), "utf-8")


def test_code_of_a_tokenizers_own_is_never_asked_for(tmp_path: Path) -> None:
    folder = make_byte_level(tmp_path)
    config = {
        "tokenizer_class": "Own",
        "auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    (folder / "tokenization_own.py").write_text("raise SystemExit('ran')", "utf-8")
    assert Tokenizer(folder).encode("a")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer\.json, and the code"):
        Tokenizer(folder)
