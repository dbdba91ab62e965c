"""The diffusion model: what a block sees, what it is taught, and how it is decoded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from engine.training import denoise as decoding
from engine.training.block_forward import clean_and_blocks, read_blocks
from engine.training.corpus import Corpus, RowReader
from engine.training.diffusion import (
    DiffusionRecipe,
    lesson_losses,
    make_lesson,
    save_diffusion,
    train_diffusion,
)
from engine.training.diffusion_eval import (
    DiffusionProposer,
    masked_nats,
    semi_ar_figures,
    surprise,
)
from engine.training.frozen_verifier import FrozenVerifier
from engine.training.loop import Budget
from engine.training.noising import (
    ALL_MASKED,
    DEER_ALPHA,
    HOLE,
    SOME_MASKED,
    Noise,
    deer_noise,
    mixed_noise,
)
from engine.training.presets import PRESETS
from engine.training.rows import Rows, RowSource
from engine.training.tokenizer import MASK_ID
from engine.training.verifier import build_verifier
from tests.engine.tiny_models import tiny_qwen3

PRESET = replace(PRESETS["tiny"], vocab_size=32, num_layers=1, max_length=64, adam_lr=0.01)
PERIOD = 4


def cyclic_source(seed: int = 1) -> RowSource:
    """Text that counts 10, 11, 12, 13, 10, .. from a random start: one token tells the rest."""
    starts = np.random.default_rng(0).integers(0, PERIOD, 40)
    tokens = np.concatenate([10 + (start + np.arange(64)) % PERIOD for start in starts])
    corpus = Corpus(tokens.astype(np.uint16), np.arange(0, 64 * 41, 64), ["count"] * 40)
    return RowSource(None, RowReader(corpus, {}, seed), 256, seed)


def train(folder: Path, steps: int, stop_after: int | None = None) -> Any:
    model = build_verifier(PRESET, 3)
    recipe, budget = DiffusionRecipe(lr_factor=1.0), Budget(steps=steps)
    train_diffusion(model, cyclic_source(), recipe, PRESET, budget, folder, 7, stop_after)
    return model.eval()


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train(tmp_path_factory.mktemp("counting"), 60)


def rows_of(token_ids: Tensor, end: list[int]) -> Rows:
    return Rows(token_ids, torch.zeros(len(end), dtype=torch.int64), torch.tensor(end))


def test_a_block_sees_the_tokens_before_its_anchor_and_itself_and_nothing_sees_a_block() -> None:
    anchors, length, size = torch.tensor([[0, 3], [2, 2]]), 5, 3
    mask = clean_and_blocks(anchors, length, size)
    assert mask.shape == (2, 11, 11)
    for row in range(2):
        for query in range(11):
            for key in range(11):
                if query < length:
                    sees = key <= query
                elif key < length:
                    sees = key < anchors[row, (query - length) // size]
                else:
                    sees = (query - length) // size == (key - length) // size
                assert mask[row, query, key] == sees, (row, query, key)


def test_clean_rows_are_those_of_the_plain_causal_model() -> None:
    model: Any = tiny_qwen3()
    tokens = torch.randint(4, 500, (2, 12))
    clean, _ = read_blocks(model, tokens, torch.tensor([[3], [7]]), torch.full((2, 1, 4), MASK_ID))
    plain = model.model(input_ids=tokens, use_cache=False).last_hidden_state
    torch.testing.assert_close(clean, plain)


def block_alone(model: Any, prefix: list[int], block: list[int]) -> Tensor:
    """Logits for the tokens of one block: causal before the anchor, whole from it on."""
    tokens, context = torch.tensor([prefix + block]), len(prefix) - 1
    mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
    mask[context:] = True
    hidden = model.model(input_ids=tokens, attention_mask=mask[None, None], use_cache=False)
    logits: Tensor = model.lm_head(hidden.last_hidden_state[0, context:-1])
    return logits


def test_the_loss_is_that_of_one_forward_a_block_with_the_row_before_a_mask_predicting_it() -> None:
    torch.manual_seed(5)
    model: Any = tiny_qwen3()
    tokens, ends = torch.randint(4, 500, (2, 20)), [20, 13]
    rows, anchors = rows_of(tokens, ends), torch.tensor([[0, 6, 17], [2, 11, 5]])
    noise = mixed_noise((2, 3), 6)
    noise = Noise(noise.masked, noise.weight, torch.tensor([[0, 1, 2], [1, 0, 0]]))
    # The block that reaches past the end of its row: nothing there is asked for, or shown.
    noise.masked[1, 1] = torch.tensor([True, False, True, False, True, False])
    noise.weight[1, 1] = 2.0 * noise.masked[1, 1]
    with torch.no_grad():
        causal, diffusion = lesson_losses(model, rows, make_lesson(rows, anchors, noise))
        total = weights = torch.zeros(())
        for row in range(2):
            plain = model(tokens[row : row + 1]).logits[0]
            for block in range(3):
                begin = int(anchors[row, block]) + 1
                true = tokens[row, begin : min(begin + 6, ends[row])].tolist()
                shown = [MASK_ID] * 6
                for n, token in enumerate(true):
                    shown[n] = MASK_ID if noise.masked[row, block, n] else token
                logits = block_alone(model, tokens[row, :begin].tolist(), shown)
                for n, token in enumerate(true):
                    if not noise.masked[row, block, n]:
                        continue
                    target = F.one_hot(torch.tensor(token), 512).float()
                    if noise.kind[row, block] == ALL_MASKED:
                        target = plain[begin + n - 1].softmax(-1)
                    weight = noise.weight[row, block, n]
                    total = total + weight * F.cross_entropy(logits[n], target)
                    weights = weights + weight
        torch.testing.assert_close(diffusion, total / weights)
        per_row = [
            F.cross_entropy(model(t[None, :e]).logits[0, :-1], t[1:e], reduction="sum")
            for t, e in zip(tokens, ends, strict=True)
        ]
        torch.testing.assert_close(causal, sum(per_row) / (19 + 12))


def test_every_kind_of_noise_masks_something_and_weighs_it() -> None:
    torch.manual_seed(0)
    noise = mixed_noise((40, 10), 8)
    assert (noise.masked.sum(-1) > 0).all()
    assert (noise.weight > 0).equal(noise.masked)
    all_masked, some, hole = (
        noise.masked[noise.kind == k] for k in (ALL_MASKED, SOME_MASKED, HOLE)
    )
    assert min(len(all_masked), len(some), len(hole)) > 40
    assert all_masked.all()
    assert set(some.sum(-1).tolist()) == set(range(1, 9))
    assert not hole[:, -1].any()
    assert (hole.int().diff(dim=-1) <= 0).all()
    ratio = some.float().mean(-1, keepdim=True)
    expected = (some / ratio).clamp(max=4.0)
    torch.testing.assert_close(noise.weight[noise.kind == SOME_MASKED], expected)


def test_deer_weighs_the_first_token_most() -> None:
    noise = deer_noise((1, 2), 4)
    assert noise.masked.all()
    expected = torch.tensor([DEER_ALPHA**3, DEER_ALPHA**2, DEER_ALPHA, 1.0])
    torch.testing.assert_close(noise.weight[0, 1], expected)


def test_a_killed_training_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    straight = train(tmp_path / "straight", 6)
    train(tmp_path / "killed", 6, stop_after=4)
    resumed = train(tmp_path / "killed", 6)
    for name, weight in straight.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def counted(last: int, length: int) -> list[int]:
    return [10 + (last - 9 + n) % PERIOD for n in range(length)]


def test_it_learns_to_draft_a_canvas_and_blocks_and_to_fill_a_hole(counting: Any) -> None:
    prompt = counted(9, 23)
    assert prompt[-1] == 12
    # The second token of one pass: no row of the block has seen the first.
    assert decoding.draft(counting, prompt, 4)[:2] == counted(12, 2)
    assert decoding.canvas(counting, prompt, 12, 0.9).token_ids == counted(12, 12)
    assert decoding.semi_ar(counting, prompt, 10, 4, 0.9).token_ids == counted(12, 10)
    whole = counted(12, 12)
    assert decoding.infill(counting, prompt, 7, whole[7:], 0.9).token_ids == whole[:7]


def test_it_still_is_a_causal_model(counting: Any) -> None:
    tokens = torch.tensor([counted(13, 24)])
    logits = counting(tokens).logits[0, 4:-1]
    assert logits.argmax(-1).tolist() == tokens[0, 5:].tolist()


def test_the_threshold_rules_how_many_passes_a_block_takes() -> None:
    model: Any = tiny_qwen3()
    assert decoding.canvas(model, [5, 6, 7], 6, 1.0).num_forwards == 6
    assert decoding.canvas(model, [5, 6, 7], 6, 0.0).num_forwards == 1
    one_pass = decoding.canvas(model, [5, 6, 7], 6, 0.0).token_ids
    assert one_pass == decoding.draft(model, [5, 6, 7], 6)


def test_only_masks_are_revealed_and_none_is_left() -> None:
    model: Any = tiny_qwen3()
    block = [MASK_ID, 21, MASK_ID, MASK_ID, 22]
    for threshold in (0.0, 0.005, 1.0):
        tokens = decoding.denoise(model, [5, 6], block, threshold).token_ids
        assert (tokens[1], tokens[4]) == (21, 22)
        assert MASK_ID not in tokens


def test_the_most_certain_token_is_revealed_first() -> None:
    model: Any = tiny_qwen3()
    masks = [MASK_ID] * 3
    probability, best = decoding.block_logits(model, [5, 6], masks).softmax(-1).max(-1)
    first = int(probability.argmax())
    assert decoding.denoise(model, [5, 6], masks, 1.0).token_ids[first] == best[first]


def test_semi_ar_ends_with_the_stop_token_and_at_its_length() -> None:
    model: Any = tiny_qwen3()
    free = decoding.semi_ar(model, [5, 6], 7, 3, 0.0)
    assert (len(free.token_ids), free.num_forwards) == (7, 3)
    stop = free.token_ids[4]
    stopped = decoding.semi_ar(model, [5, 6], 7, 3, 0.0, frozenset({stop})).token_ids
    assert stopped == free.token_ids[: free.token_ids.index(stop) + 1]


def test_plain_transformers_loads_the_checkpoint(counting: Any, tmp_path: Path) -> None:
    save_diffusion(counting, DiffusionRecipe(), tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert loaded.config.diffusion_config["logit_shift"] is True
    assert loaded.config.diffusion_config["mask_token_id"] == MASK_ID
    assert decoding.draft(loaded.float(), counted(9, 23), 4)[:2] == counted(12, 2)


def test_held_out_nats_are_those_of_single_blocks() -> None:
    torch.manual_seed(1)
    model: Any = tiny_qwen3()
    ids = torch.randint(4, 500, (40,)).tolist()
    found = masked_nats(model, [ids, ids[:20]], seed=0)
    true = torch.tensor(ids[1:33])
    shown = {"1": [MASK_ID] * 32, "hole": [MASK_ID] * 8 + ids[9:33], "no_suffix": [MASK_ID] * 32}
    asked = {"1": 32, "hole": 8, "no_suffix": 8}
    with torch.no_grad():
        for name, block in shown.items():
            logits = decoding.without_mask(block_alone(model, ids[:1], block))[: asked[name]]
            nats = F.cross_entropy(logits, true[: asked[name]]).item()
            assert found[name] == pytest.approx(nats, abs=6e-4), name


def test_what_is_proposed_everywhere_is_what_is_drafted_there() -> None:
    model: Any = tiny_qwen3()
    proposer = DiffusionProposer(model, num_drafts=5)
    tokens = torch.randint(4, 500, (2, 12))
    reading = FrozenVerifier(model).read(tokens, (0,))
    logits = proposer.head(proposer.blocks(reading, torch.tensor([[2, 7], [11, 4]])))
    for row, block, anchor in ((0, 0, 2), (0, 1, 7), (1, 0, 11), (1, 1, 4)):
        expected = decoding.draft(model, tokens[row, : anchor + 1].tolist(), 5)
        assert logits[row, block].argmax(-1).tolist() == expected


def test_a_verifier_is_surprised_as_its_logits_say(counting: Any) -> None:
    prompt, answer = counted(9, 20), counted(13, 5)
    logits = counting(torch.tensor([prompt + answer])).logits[0, 19:-1]
    nats = F.cross_entropy(logits, torch.tensor(answer), reduction="sum").item()
    verifier = FrozenVerifier(counting)
    assert surprise(verifier, prompt, answer) == pytest.approx(nats, rel=1e-4)
    figures = semi_ar_figures(counting, verifier, [prompt])
    assert [row["block_length"] for row in figures] == [8, 32, 32]
    assert all(1 <= row["tokens_a_forward"] <= 32 for row in figures)
