"""The drafter module: cached context and paged attention say what one plain formula says."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.models.checkpoint import UnsupportedModelError
from engine.models.dflash import DFlashConfig, DFlashDrafter, load_drafter, save_drafter
from engine.models.fused_drafter import fuse_drafter

CONFIG = DFlashConfig(
    num_layers=2,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    vocab_size=100,
    mask_token_id=3,
    target_layer_ids=(0, 2),
    num_target_layers=4,
    block_size=4,
)
PAGE = 4
Pages = list[tuple[Tensor, Tensor]]


@pytest.fixture
def drafter() -> DFlashDrafter:
    torch.manual_seed(0)
    made = DFlashDrafter(CONFIG).eval()
    for weight in made.parameters():
        torch.nn.init.normal_(weight, mean=1.0 if weight.ndim == 1 else 0.0, std=0.3)
    return made


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + CONFIG.rms_norm_eps).sqrt() * weight


def rope(x: Tensor, position: int) -> Tensor:
    """One row [H, D], every pair (i, i + D / 2) turned by its own angle."""
    half = CONFIG.head_dim // 2
    turned = torch.empty_like(x)
    for i in range(half):
        angle = torch.tensor(position * CONFIG.rope_theta ** (-2 * i / CONFIG.head_dim))
        a, b = x[:, i], x[:, i + half]
        turned[:, i] = a * angle.cos() - b * angle.sin()
        turned[:, i + half] = b * angle.cos() + a * angle.sin()
    return turned


def one_block_in_plain_words(d: DFlashDrafter, tapped: Tensor, embeds: Tensor) -> Tensor:
    """The whole drafter for one block that follows `tapped`, row by row and head by head."""
    w = d.state_dict()
    anchor = len(tapped)
    context = norm(tapped @ w["fc.weight"].T, w["hidden_norm.weight"])
    x = embeds
    for n in range(CONFIG.num_layers):
        own = {k.removeprefix(f"layers.{n}."): v for k, v in w.items() if f"layers.{n}." in k}
        normed = norm(x, own["input_layernorm.weight"])
        rows = torch.cat((context, normed))
        q = (normed @ own["self_attn.q_proj.weight"].T).view(len(x), -1, CONFIG.head_dim)
        k = (rows @ own["self_attn.k_proj.weight"].T).view(len(rows), -1, CONFIG.head_dim)
        v = (rows @ own["self_attn.v_proj.weight"].T).view(len(rows), -1, CONFIG.head_dim)
        q, k = norm(q, own["self_attn.q_norm.weight"]), norm(k, own["self_attn.k_norm.weight"])
        q = torch.stack([rope(row, anchor + i) for i, row in enumerate(q)])
        k = torch.stack([rope(row, i) for i, row in enumerate(k)])
        mixed = torch.zeros_like(q)
        for head in range(CONFIG.num_heads):
            shared = head // (CONFIG.num_heads // CONFIG.num_kv_heads)
            scores = q[:, head] @ k[:, shared].T * CONFIG.head_dim**-0.5
            mixed[:, head] = scores.softmax(-1) @ v[:, shared]
        x = x + mixed.flatten(1) @ own["self_attn.o_proj.weight"].T
        y = norm(x, own["post_attention_layernorm.weight"])
        gate = F.silu(y @ own["mlp.gate_proj.weight"].T) * (y @ own["mlp.up_proj.weight"].T)
        x = x + gate @ own["mlp.down_proj.weight"].T
    return norm(x, w["norm.weight"])


class PagedAttend:
    """Attention as a server does it: context from pages of each block's own table."""

    def __init__(self, pages: list[Pages], tables: list[list[int]], lengths: list[int]) -> None:
        self.pages, self.tables, self.lengths = pages, tables, lengths

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        size, out = CONFIG.block_size, []
        for i, (table, length) in enumerate(zip(self.tables, self.lengths, strict=True)):
            rows = slice(i * size, (i + 1) * size)
            keys = torch.cat([self.pages[layer][p][0] for p in table])[:length]
            values = torch.cat([self.pages[layer][p][1] for p in table])[:length]
            mixed = F.scaled_dot_product_attention(
                q[rows].transpose(0, 1),
                torch.cat((keys, k[rows])).transpose(0, 1),
                torch.cat((values, v[rows])).transpose(0, 1),
                enable_gqa=True,
            )
            out.append(mixed.transpose(0, 1))
        return torch.cat(out)


@torch.no_grad()
def test_paged_context_equals_one_plain_computation(drafter: DFlashDrafter) -> None:
    lengths, tables = [7, 4], [[2, 0], [1]]
    tapped = [torch.randn(n, CONFIG.context_size) for n in lengths]
    embeds = torch.randn(2, CONFIG.block_size, CONFIG.hidden_size)
    pages: list[Pages] = [[], []]
    for layer in range(CONFIG.num_layers):
        pool = [torch.full((2, PAGE, CONFIG.num_kv_heads, CONFIG.head_dim), 9.0) for _ in range(3)]
        for hidden, table in zip(tapped, tables, strict=True):
            # One token at a time, as decoding fills the cache.
            for t, row in enumerate(hidden):
                context = drafter.project_context(row[None])
                key, value = drafter.context_kv(layer, context, torch.tensor([t]))
                pool[table[t // PAGE]][:, t % PAGE] = torch.stack((key[0], value[0]))
        pages[layer] = [(page[0], page[1]) for page in pool]
    positions = torch.cat([n + torch.arange(CONFIG.block_size) for n in lengths])
    found = drafter(embeds.flatten(0, 1), positions, PagedAttend(pages, tables, lengths))
    for i in range(2):
        expected = one_block_in_plain_words(drafter, tapped[i], embeds[i])
        rows = found[i * CONFIG.block_size : (i + 1) * CONFIG.block_size]
        torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-4)


def test_a_saved_drafter_loads_as_it_was(drafter: DFlashDrafter, tmp_path: Path) -> None:
    save_drafter(drafter, tmp_path, torch.float32)
    loaded = load_drafter(tmp_path)
    assert loaded.config == CONFIG
    for name, weight in drafter.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)


def test_a_published_config_is_read_in_both_spellings_of_the_rope(tmp_path: Path) -> None:
    raw = CONFIG.to_json()
    assert raw["architectures"] == ["DFlashDraftModel"]
    newer = {k: v for k, v in raw.items() if k != "rope_theta"}
    newer["rope_parameters"] = {"rope_type": "default", "rope_theta": CONFIG.rope_theta}
    assert DFlashConfig.from_json(json.loads(json.dumps(raw))) == CONFIG
    assert DFlashConfig.from_json(newer) == CONFIG


def test_a_missing_tensor_is_refused(drafter: DFlashDrafter, tmp_path: Path) -> None:
    save_drafter(drafter, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    config["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(UnsupportedModelError, match=r"lacks weights: layers\.2"):
        load_drafter(tmp_path)


def test_a_fused_drafter_drafts_and_keeps_context_as_before(drafter: DFlashDrafter) -> None:
    fused = copy.deepcopy(drafter)
    fuse_drafter(fused)
    size, width = drafter.config.hidden_size, drafter.config.block_size
    embeds, positions = torch.randn(2 * width, size), torch.arange(7, 7 + 2 * width)
    context = torch.randn(5, size)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        groups = q.shape[1] // k.shape[1]
        keys, values = (x.repeat_interleave(groups, 1).transpose(0, 1) for x in (k, v))
        return F.scaled_dot_product_attention(q.transpose(0, 1), keys, values).transpose(0, 1)

    with torch.inference_mode():
        expected = drafter(embeds, positions, attend)
        torch.testing.assert_close(fused(embeds, positions, attend), expected)
        for layer in range(drafter.config.num_layers):
            for mine, theirs in zip(
                fused.context_kv(layer, context, positions[:5]),
                drafter.context_kv(layer, context, positions[:5]),
                strict=True,
            ):
                torch.testing.assert_close(mine, theirs)
