"""Converted drafters: transformers' own DFlash loop drafts with them what our engine drafts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DFlashCache
from transformers.generation.candidate_generator import DFlashTokenCandidateGenerator

from engine.models.dflash import DFlashDrafter, load_drafter, save_drafter
from engine.request.sampling_params import SamplingParams
from engine.training import convert_drafter
from engine.training.blocks import block_hidden
from engine.training.convert_drafter import UnlikeDFlashError, read_drafter
from engine.training.frozen_verifier import FrozenVerifier
from tests.engine.engines import Ask, load_models, make_engine, run_all
from tests.engine.test_dflash import CONFIG
from tests.engine.tiny_models import tiny_qwen3

WEIGHTS = Path(__file__).parents[2] / "engine" / "weights"
NUM_TOKENS = 32
PROMPTS = (
    "I want to book a table for two at an Italian restaurant in San Jose.",
    "What is 12 * (4 + 3)?",
)


@pytest.fixture
def drafter() -> DFlashDrafter:
    """Two layers, and no weight, norms included, at a value that would hide it."""
    torch.manual_seed(0)
    made = DFlashDrafter(CONFIG).eval()
    for weight in made.parameters():
        nn.init.normal_(weight, mean=1.0 if weight.ndim == 1 else 0.0, std=0.3)
    return made


def convert(source: Path, target: Path, layout: str) -> Path:
    convert_drafter.main([str(source), str(target), "--to", layout])
    return target


def read_json(folder: Path) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return raw


@torch.no_grad()
def test_transformers_computes_the_block_that_we_compute(
    drafter: DFlashDrafter, tmp_path: Path
) -> None:
    save_drafter(drafter, tmp_path / "own", torch.float32)
    theirs = AutoModel.from_pretrained(convert(tmp_path / "own", tmp_path / "to", "transformers"))
    shape = {"vocab_size": CONFIG.vocab_size, "hidden_size": CONFIG.hidden_size}
    verifier = FrozenVerifier(tiny_qwen3(num_hidden_layers=4, **shape))
    anchor, ids = 9, torch.randint(CONFIG.vocab_size, (1, 12))
    reading = verifier.read(ids, CONFIG.target_layer_ids)
    block = torch.tensor([ids[0, anchor], *[CONFIG.mask_token_id] * (CONFIG.block_size - 1)])
    cache = DFlashCache(config=theirs.config)
    cache.set_previous_accepted_tokens(anchor)
    found = theirs(
        noise_embeds=verifier.embed(block)[None],
        context_hidden_states=reading.tapped[:, :anchor],
        position_ids=torch.arange(anchor + CONFIG.block_size)[None],
        past_key_values=cache,
    ).last_hidden_state[:, 1:]
    expected = block_hidden(drafter, verifier, reading, torch.tensor([[anchor]]))[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["transformers", "published"])
def test_there_and_back_no_weight_and_no_setting_has_changed(
    drafter: DFlashDrafter, layout: str, tmp_path: Path
) -> None:
    save_drafter(drafter, tmp_path / "own")
    there = convert(tmp_path / "own", tmp_path / "there", layout)
    back = convert(there, tmp_path / "back", "ours")
    assert read_json(back) == read_json(tmp_path / "own")
    assert load_drafter(back).config == CONFIG
    first, last = (load_file(p / "model.safetensors") for p in (tmp_path / "own", back))
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert {w.dtype for w in last.values()} == {torch.bfloat16}


def test_the_published_layout_has_no_heads_and_bfloat16(
    drafter: DFlashDrafter, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    save_drafter(drafter, own, torch.float32)
    with_heads = read_json(own) | {"draft_heads": {"markov_rank": 2, "confidence": False}}
    (own / "config.json").write_text(json.dumps(with_heads), "utf-8")
    save_file({"markov.x": torch.zeros(2)}, own / "heads.safetensors")
    for layout in convert_drafter.LAYOUTS:
        found = convert(own, tmp_path / layout, layout)
        assert "draft_heads" not in read_json(found)
        assert {p.name for p in found.iterdir()} == {"config.json", "model.safetensors"}
    raw = read_json(tmp_path / "published")
    assert raw["architectures"] == ["DFlashDraftModel"]
    assert raw["dflash_config"] == {"mask_token_id": 3, "target_layer_ids": [0, 2]}
    assert read_drafter(tmp_path / "published").dtype == torch.bfloat16
    assert read_drafter(tmp_path / "ours").dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"layer_types": ["sliding_attention"] * 2}, "sliding window"),
        ({"layer_types": None}, "sliding window"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
        ({"attention_bias": True}, "biases"),
        ({"vocab_size": ...}, "lacks vocab_size"),
        ({"intermediate_size": 47}, "layers.0.mlp.down_proj.weight"),
    ],
)
def test_what_our_drafter_would_compute_otherwise_is_refused(
    drafter: DFlashDrafter, change: dict[str, object], complaint: str, tmp_path: Path
) -> None:
    save_drafter(drafter, tmp_path / "own")
    folder = convert(tmp_path / "own", tmp_path / "to", "transformers")
    changed = {k: v for k, v in (read_json(folder) | change).items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(changed), "utf-8")
    with pytest.raises(UnlikeDFlashError, match=complaint):
        read_drafter(folder)


def test_a_folder_that_is_no_drafter_is_a_plain_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, complaint in ((tmp_path / "none", "No such file"), (tmp_path, "same folder")):
        with pytest.raises(SystemExit):
            convert(source, tmp_path, "published")
        assert complaint in capsys.readouterr().err


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """(drafted, accepted) of every verify forward in transformers' loop, the prefill left out."""
    seen: list[tuple[int, int]] = []
    propose = DFlashTokenCandidateGenerator.get_candidates
    drafted = [0]

    def get_candidates(self: Any, input_ids: Any, *rest: Any, **options: Any) -> Any:
        candidates = propose(self, input_ids, *rest, **options)
        drafted[0] = (
            -1 if options["is_first_iteration"] else len(candidates[0][0]) - len(input_ids[0])
        )
        return candidates

    def update(self: Any, input_ids: Any, scores: Any, num_matches: int) -> None:
        if drafted[0] >= 0:
            seen.append((drafted[0], int(num_matches)))

    monkeypatch.setattr(DFlashTokenCandidateGenerator, "get_candidates", get_candidates)
    monkeypatch.setattr(DFlashTokenCandidateGenerator, "update_candidate_strategy", update)
    yield seen


def test_assisted_generation_writes_and_accepts_what_our_engine_does(
    rounds: list[tuple[int, int]], tmp_path: Path
) -> None:
    verifier = AutoModelForCausalLM.from_pretrained(WEIGHTS / "verifier", dtype=torch.float32)
    verifier.generation_config.eos_token_id = None
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "verifier")
    published = convert(WEIGHTS / "drafter", tmp_path / "published", "published")
    converted = convert(WEIGHTS / "drafter", tmp_path / "transformers", "transformers")
    assistant = AutoModel.from_pretrained(converted, dtype=torch.float32)
    engine = make_engine(load_models(WEIGHTS / "verifier", published))
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    how = {"do_sample": False, "max_new_tokens": NUM_TOKENS}
    masks = assistant.config.block_size - 1
    totals = torch.zeros(2)
    for text in PROMPTS:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        ids = torch.tensor([prompt])
        rounds.clear()
        plain = verifier.generate(ids, **how)
        assert not rounds
        drafted = verifier.generate(
            ids, assistant_model=assistant, speculation_type="dflash", **how
        )
        assert drafted.tolist() == plain.tolist()
        (own,) = run_all(engine, [Ask(prompt, params, mode="deer", draft_length=masks)])
        assert own.token_ids == plain[0, len(prompt) :].tolist()
        assert own.summary is not None
        drafted_lengths, accepted = zip(*rounds, strict=True)
        # The last round of all may have room for its own token alone: both then draft nothing.
        assert set(drafted_lengths[:-1]) == {masks}
        histogram = own.summary.acceptance_histogram
        assert [accepted.count(n) for n in range(len(histogram))] == list(histogram)
        totals += torch.tensor((sum(accepted), masks * len(rounds) - sum(accepted)))
    assert totals.min() > 10, "the test proves nothing: drafts all accepted, or all refused"


def test_a_verifier_is_no_drafter(tmp_path: Path) -> None:
    with pytest.raises(UnlikeDFlashError, match="holds no DFlash drafter"):
        convert_drafter.convert_drafter(WEIGHTS / "verifier", tmp_path / "out", "published")


def test_a_broken_file_of_tensors_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(WEIGHTS / "drafter", broken)
    (broken / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UnlikeDFlashError, match=r"model\.safetensors"):
        convert_drafter.convert_drafter(broken, tmp_path / "out", "published")
