"""Small but real checkpoints, made on the spot in the formats that people have."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config
from transformers import Qwen3ForCausalLM as Qwen3

from engine.models.dflash import DFlashConfig, DFlashDrafter, save_drafter

VOCAB_SIZE = 512
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
}


def tiny_qwen3(seed: int = 0, **changes: object) -> PreTrainedModel:
    torch.manual_seed(seed)
    return Qwen3(Qwen3Config(**{**SHAPE, "tie_word_embeddings": True, **changes})).eval()


def tiny_llama(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


def tiny_drafter(seed: int = 0, block_size: int = 4, head_dim: int = 16) -> DFlashDrafter:
    torch.manual_seed(seed)
    config = DFlashConfig(
        num_layers=1,
        hidden_size=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=head_dim,
        intermediate_size=96,
        vocab_size=VOCAB_SIZE,
        mask_token_id=VOCAB_SIZE - 1,
        target_layer_ids=(0, 1),
        num_target_layers=3,
        block_size=block_size,
    )
    return DFlashDrafter(config).eval()


def save_pair(folder: Path, model: PreTrainedModel, drafter: DFlashDrafter) -> tuple[Path, Path]:
    """Write both in Hugging Face format; returns verifier and drafter folders."""
    model.save_pretrained(folder / "verifier")
    save_drafter(drafter, folder / "drafter", dtype=torch.float32)
    return folder / "verifier", folder / "drafter"
