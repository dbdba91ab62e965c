"""DSpark: llama.cpp gets our drafter's Markov head with the meaning that it has here."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.peers.dspark import convert
from benchmarks.peers.place import WEIGHTS
from engine.models.draft_heads import MarkovHead


def test_the_head_is_the_same_bias_under_dsparks_names(tmp_path: Path) -> None:
    convert(WEIGHTS / "drafter", tmp_path / "dspark")
    tensors = load_file(tmp_path / "dspark" / "model.safetensors")
    w1, w2 = (tensors[f"markov_head.markov_w{n}.weight"].float() for n in (1, 2))
    head = MarkovHead(*w1.shape)
    heads = load_file(WEIGHTS / "drafter" / "heads.safetensors")
    head.load_state_dict({k.removeprefix("markov."): v.float() for k, v in heads.items()})
    previous = torch.tensor([5, 300])
    torch.testing.assert_close(w1[previous] @ w2.T, head.bias(previous))
    assert w1.any()
    assert w2.any()


def test_the_rest_is_the_drafter_as_it_is_whose_anchor_drafts_nothing(tmp_path: Path) -> None:
    convert(WEIGHTS / "drafter", tmp_path / "dspark")
    config = json.loads((tmp_path / "dspark" / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["DSparkDraftModel"]
    assert config["sample_from_anchor"] is False
    ours = load_file(WEIGHTS / "drafter" / "model.safetensors")
    theirs = load_file(tmp_path / "dspark" / "model.safetensors")
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
