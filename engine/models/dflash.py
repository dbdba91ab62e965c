"""The DFlash drafter: one small non-causal block model that reads the verifier's hidden states.

A block is the anchor (the last committed token, clean) followed by `block_size - 1` mask tokens, at
absolute positions anchor, anchor + 1, ... Block position k >= 1 predicts the token AT position
anchor + k: a mask predicts itself. What position 0 puts out is not used.

Context is every position before the anchor. Its keys and values are a function of the verifier's
tapped hidden states at that position alone, so they can be cached, shared by prefix and rolled back
by truncation. The anchor itself is not context yet: the verifier has not read it.

`target_layer_ids` counts decoder layers from 0, and id i means the hidden state AFTER layer i,
before any final norm: `hidden_states[i + 1]` of a transformers model with `output_hidden_states`.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.checkpoint import check_tensors, read_config, read_tensors, weight_bytes
from engine.models.dflash_config import DFlashConfig
from engine.models.draft_heads import ConfidenceHead, MarkovHead
from engine.models.drafter_layout import own_names, published_config
from engine.models.memory import claim_memory

__all__ = ["DFlashConfig", "DFlashDrafter", "load_drafter", "save_drafter"]

HEADS = ("markov.", "confidence.")
HEADS_FILE = "heads.safetensors"
# (layer, q [N, Hq, D], k [N, Hkv, D], v [N, Hkv, D]) -> [N, Hq, D]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Rope(nn.Module):
    """Rotary position embedding, halves rotated as in Llama and Qwen."""

    inverse_frequency: Tensor

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__()
        rates, self.scale = config.rope_rates()
        self.register_buffer("inverse_frequency", rates, persistent=False)

    def tables(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [T] -> cos and sin of both halves alike, [1, T, D] float32."""
        angle = positions[:, None].float() * self.inverse_frequency.float()
        both = torch.cat((angle, angle), dim=-1)[None]
        return both.cos() * self.scale, both.sin() * self.scale

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        # x: [T, H, D], positions: [T]
        angle = positions[:, None].float() * self.inverse_frequency.float()
        cos, sin = angle.cos()[:, None] * self.scale, angle.sin()[:, None] * self.scale
        first, second = x.float().chunk(2, dim=-1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return turned.to(x.dtype)


class DFlashAttention(nn.Module):
    """Projections of one layer; the attention itself belongs to the caller."""

    def __init__(self, config: DFlashConfig, rope: Rope) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.rope = rope
        query_size = config.num_heads * config.head_dim
        key_size = config.num_kv_heads * config.head_dim
        bias = config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=bias)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)

    def queries(self, x: Tensor, positions: Tensor) -> Tensor:
        heads = self.q_proj(x).unflatten(-1, (-1, self.head_dim))
        return self.rope(self.q_norm(heads), positions)  # type: ignore[no-any-return]

    def keys_values(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        keys = self.k_proj(x).unflatten(-1, (-1, self.head_dim))
        values = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        return self.rope(self.k_norm(keys), positions), values


class DFlashMLP(nn.Module):
    """The gated feed-forward part."""

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class DFlashLayer(nn.Module):
    """One pre-norm layer over the rows of all blocks."""

    def __init__(self, config: DFlashConfig, rope: Rope) -> None:
        super().__init__()
        self.self_attn = DFlashAttention(config, rope)
        self.mlp = DFlashMLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, positions: Tensor, index: int, attend: Attend) -> Tensor:
        normed = self.input_layernorm(x)
        keys, values = self.self_attn.keys_values(normed, positions)
        mixed = attend(index, self.self_attn.queries(normed, positions), keys, values)
        x = x + self.self_attn.o_proj(mixed.flatten(-2))
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]

    def context_kv(self, context: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.self_attn.keys_values(context, positions)


class DFlashDrafter(nn.Module):
    """The drafter; embedding and output head are the verifier's and stay with the caller."""

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__()
        self.config = config
        rope = Rope(config)
        self.fc = nn.Linear(config.context_size, config.hidden_size, bias=False)
        self.hidden_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.layers = nn.ModuleList(DFlashLayer(config, rope) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        rank = config.markov_rank
        self.markov = MarkovHead(config.vocab_size, rank) if rank else None
        self.confidence = (
            ConfidenceHead(config.hidden_size, rank) if config.has_confidence else None
        )

    def project_context(self, hidden: Tensor) -> Tensor:
        """Tapped hidden states [T, taps * H] -> context features [T, H]."""
        return self.hidden_norm(self.fc(hidden))  # type: ignore[no-any-return]

    def context_kv(self, layer: int, context: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Context features [T, H] at positions [T] -> k (normed, roped) and v, both [T, Hkv, D]."""
        return self.layers[layer].context_kv(context, positions)  # type: ignore[operator, no-any-return]

    def shape_logits(self, logits: Tensor) -> Tensor:
        """What the drafter makes of the shared output head's logits, of any shape."""
        if self.config.output_multiplier != 1.0:
            logits = logits * self.config.output_multiplier
        cap = self.config.final_logit_softcapping
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def confidence_log_odds(self, hidden: Tensor, previous_ids: Tensor) -> Tensor:
        """Final hidden [N, H] of masks and the tokens drafted before them [N] -> log-odds [N]."""
        assert self.confidence is not None
        markov = self.markov
        previous = None if markov is None else markov.embed_previous(previous_ids)
        return self.confidence(hidden, previous)  # type: ignore[no-any-return]

    def forward(self, block_embeds: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Rows of all blocks [N, H] at positions [N] -> final normed hidden [N, H].

        `attend` must let each row see the context before its anchor and the whole of its own
        block, whose keys and values it is given, with scale head_dim ** -0.5; less in the layers
        of which `config.window` and `config.is_causal` say so.
        """
        x = block_embeds
        for index, layer in enumerate(self.layers):
            x = layer(x, positions, index, attend)
        return self.norm(x)  # type: ignore[no-any-return]


def load_drafter(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    verifier: Mapping[str, int] | None = None,
) -> DFlashDrafter:
    """Load a drafter folder, as z-lab publishes them or as transformers' assistant.

    The latter does not say the vocabulary and the depth of the verifier: `verifier` does, with
    `vocab_size` and `num_target_layers`. A tensor too many or too few is an error, and so is what
    this drafter would compute otherwise (`UnsupportedModelError`).
    """
    folder, device = Path(path), torch.device(device)
    raw = read_config(folder, "drafter")
    config = DFlashConfig.from_json(published_config(raw, verifier or {}))
    claim_memory(weight_bytes(folder, dtype), device, f"the drafter {folder}")
    heads = folder / HEADS_FILE
    tensors = own_names(raw, read_tensors(folder)) | (load_file(heads) if heads.exists() else {})
    with torch.device("meta"):
        drafter = DFlashDrafter(config)
    rope = Rope(config)  # which no tensor of the folder gives
    for layer in drafter.layers:
        layer.self_attn.rope = rope  # type: ignore[union-attr]
    expected = drafter.state_dict()
    check_tensors(expected.keys() - tensors.keys(), tensors.keys() - expected.keys(), str(folder))
    shapes = {k for k, v in expected.items() if v.shape != tensors[k].shape}
    check_tensors(shapes, set(), f"{folder}, whose config.json gives them other shapes,")
    drafter.load_state_dict(tensors, assign=True)
    return drafter.to(device=device, dtype=dtype).eval()


def save_drafter(
    drafter: DFlashDrafter, path: str | Path, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write the published layout, and our optional heads, if any, in a file beside it.

    So a loader that knows only the published tensors finds no other in `model.safetensors`.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in drafter.state_dict().items()}
    text = json.dumps(drafter.config.to_json(), indent=2)
    (folder / "config.json").write_text(text + "\n", "utf-8")
    heads = {k: v for k, v in tensors.items() if k.startswith(HEADS)}
    plain = {k: v for k, v in tensors.items() if k not in heads}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    if heads:
        save_file(heads, folder / HEADS_FILE, metadata={"format": "pt"})
    else:
        (folder / HEADS_FILE).unlink(missing_ok=True)  # of a drafter that stood here before
