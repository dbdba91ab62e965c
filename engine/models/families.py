"""Published families of diffusion LMs: their config keys and tensor names, and what they map onto.

What was read of each, so that it can be checked again:

llada: GSAI-ML/LLaDA-8B-Instruct, `config.json` and `modeling_llada.py` (as in hxhcreate/DARE,
    models/LLaDA-8B-Instruct). OLMo's names over Llama's block: RMSNorm before each part, rope by
    halves, gate `ff_proj`, up `up_proj`, down `ff_out`; `is_causal=False`; no shift: generate.py
    of ML-GSAI/LLaDA takes the logits of a mask's own row. arXiv 2502.09992.
Dream: Dream-org/Dream-v0-Instruct-7B, `modeling_dream.py` (HKUNLP/Dream; as in NVlabs/Fast-dLLM,
    dream/model). Qwen2's names and block, biases on q, k, v; not causal; its generation shifts
    the logits by one row. arXiv 2508.15487. DiffuCoder (apple) has the same type.
sdar, sdar_moe: JetLM/SDAR-*-Chat, `modeling_sdar.py` and generate.py (JetAstra/SDAR),
    `config.json` (as in hxhcreate/DARE, models/SDAR-1dot7B-Chat). Qwen3's names and block; blocks
    aligned to position 0, both ways inside, causal across, no shift; not every config has
    `block_size` and `mask_token_id`. arXiv 2510.06303.
Fast_dLLM_Qwen: Efficient-Large-Model/Fast_dLLM_v2_7B, `modeling.py` (as in
    Satgoy152/DualDiffusion, FastDLLM_inferencing). Qwen2's names and block; blocks of `bd_size`
    as in SDAR, logits shifted by one row; the mask is a default of its code. arXiv 2509.26328.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import transformers

from engine.models.checkpoint import UnsupportedModelError, read_config

DIFFUSION_KEY = "diffusion_config"  # of our own checkpoints, in a config of transformers
ASSISTANT_TYPE = "muse_glimmer_assistant"  # DFlash as transformers writes it
CANVAS_TYPE = "diffusion_gemma"


class ContextKind(StrEnum):
    """How the tokens before a block see each other, and with that what their KV depends on."""

    CAUSAL = "causal"  # each sees those before it: KV is a function of the prefix
    BLOCK_CAUSAL = "block_causal"  # blocks of one length, both ways inside a block
    BIDIRECTIONAL = "bidirectional"  # everything sees everything: KV is never final


class CheckpointKind(StrEnum):
    """What a checkpoint folder holds, as its config.json says."""

    CAUSAL_LM = "causal LM"
    DRAFTER = "DFlash drafter"
    DIFFUSION_LM = "diffusion LM"


def checkpoint_kind(folder: Path) -> CheckpointKind:
    """What a folder holds, by its config.json alone."""
    raw = read_config(folder)
    if "dflash_config" in raw or raw.get("model_type") == ASSISTANT_TYPE:
        return CheckpointKind.DRAFTER
    if DIFFUSION_KEY in raw or raw.get("model_type") in (*FAMILIES, CANVAS_TYPE):
        return CheckpointKind.DIFFUSION_LM
    return CheckpointKind.CAUSAL_LM


@dataclass(frozen=True)
class Family:
    """One published layout of a diffusion LM, and the causal LM of transformers behind it."""

    backbone: str
    """Of transformers: "Llama" stands for `LlamaConfig` and `LlamaForCausalLM`."""
    context: ContextKind
    logit_shift: bool
    mask_token_id: int
    """What the family's published code takes where neither config nor tokenizer names one."""
    block_keys: tuple[str, ...] = ()
    """Where a config keeps the trained block length."""
    block_length: int | None = None
    """The block length where the config has none."""
    translate: Callable[[dict[str, Any]], dict[str, Any]] = dict
    rename: Callable[[str], str] = str

    @property
    def model_class(self) -> Any:
        return getattr(transformers, f"{self.backbone}ForCausalLM")

    def backbone_config(self, raw: dict[str, Any]) -> Any:
        """The family's config.json -> config of the backbone."""
        if raw.get("quantization_config"):
            raise UnsupportedModelError("quantised checkpoints of this family cannot be read")
        if raw.get("use_sliding_window"):
            raise UnsupportedModelError("a sliding window says nothing about both directions")
        known = {k: v for k, v in self.translate(raw).items() if k not in _NOT_OF_THE_BACKBONE}
        return getattr(transformers, f"{self.backbone}Config").from_dict(known)

    def mask_id(self, raw: dict[str, Any], folder: Path) -> int:
        """The mask token, by config, by tokenizer, or by what the family publishes."""
        found = raw.get("mask_token_id")
        if found is None:
            found = mask_of_tokenizer(folder)
        return self.mask_token_id if found is None else int(found)

    def trained_block_length(self, raw: dict[str, Any]) -> int | None:
        found = [raw[key] for key in self.block_keys if raw.get(key)]
        return int(found[0]) if found else self.block_length


_NOT_OF_THE_BACKBONE = frozenset(
    {
        "architectures",
        "attn_implementation",
        "_attn_implementation",
        "auto_map",
        "model_type",
        "transformers_version",
        "use_cache",
    }
)


def mask_of_tokenizer(folder: Path) -> int | None:
    """Id of the mask token that tokenizer_config.json names, as tokenizer.json numbers it."""
    named = _json_of(folder / "tokenizer_config.json").get("mask_token")
    name = named.get("content") if isinstance(named, dict) else named
    added = _json_of(folder / "tokenizer.json").get("added_tokens", [])
    ids = (token["id"] for token in added if token["content"] == name)
    return next(ids, None)


def _json_of(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    raw: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return raw


_LLADA_MUST_BE = {
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "rope": True,
    "scale_logits": False,
}


def _llada_config(raw: dict[str, Any]) -> dict[str, Any]:
    for key, wanted in _LLADA_MUST_BE.items():
        if raw.get(key, wanted) != wanted:
            raise UnsupportedModelError(f"llada with {key} = {raw[key]!r}, not {wanted!r}")
    heads = raw["n_heads"]
    kv_heads = raw.get("n_kv_heads") or (1 if raw.get("multi_query_attention") else heads)
    return {
        "hidden_size": raw["d_model"],
        "intermediate_size": raw.get("mlp_hidden_size") or raw["mlp_ratio"] * raw["d_model"],
        "num_hidden_layers": raw["n_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": raw["max_sequence_length"],
        "rms_norm_eps": raw["rms_norm_eps"],
        "rope_theta": raw["rope_theta"],
        "tie_word_embeddings": raw["weight_tying"],
        "vocab_size": raw.get("embedding_size") or raw["vocab_size"],
        "bos_token_id": None,
        "eos_token_id": raw.get("eos_token_id"),
        "pad_token_id": raw.get("pad_token_id"),
    }


_LLADA_BLOCK = re.compile(r"model\.transformer\.blocks\.(\d+)\.(\w+)\.weight")
_LLADA_PARTS = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
}
_LLADA_WHOLE = {
    "model.transformer.wte.weight": "model.embed_tokens.weight",
    "model.transformer.ln_f.weight": "model.norm.weight",
    "model.transformer.ff_out.weight": "lm_head.weight",
}


def _llada_name(name: str) -> str:
    """A tensor's name in Llama; one that is not known keeps its own, and is refused as such."""
    found = _LLADA_BLOCK.fullmatch(name)
    if found and found[2] in _LLADA_PARTS:
        return f"model.layers.{found[1]}.{_LLADA_PARTS[found[2]]}.weight"
    return _LLADA_WHOLE.get(name, name)


_DREAM = Family("Qwen2", ContextKind.BIDIRECTIONAL, logit_shift=True, mask_token_id=151666)
_SDAR_BLOCKS: dict[str, Any] = {
    "context": ContextKind.BLOCK_CAUSAL,
    "logit_shift": False,
    "mask_token_id": 151669,
    "block_keys": ("block_size", "block_length"),
    "block_length": 4,
}

FAMILIES: dict[str, Family] = {
    "llada": Family(
        "Llama",
        ContextKind.BIDIRECTIONAL,
        logit_shift=False,
        mask_token_id=126336,
        translate=_llada_config,
        rename=_llada_name,
    ),
    "Dream": _DREAM,
    "dream": _DREAM,
    "sdar": Family("Qwen3", **_SDAR_BLOCKS),
    "sdar_moe": Family("Qwen3Moe", **_SDAR_BLOCKS),
    "Fast_dLLM_Qwen": Family(
        "Qwen2",
        ContextKind.BLOCK_CAUSAL,
        logit_shift=True,
        mask_token_id=151665,
        block_keys=("bd_size",),
        block_length=32,
    ),
}
