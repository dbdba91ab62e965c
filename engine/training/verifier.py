"""Stage 3: the autoregressive verifier, a plain `Qwen3ForCausalLM`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from engine.training.corpus import RowReader
from engine.training.loop import Budget, Fit, Progress
from engine.training.optimizer import OptimizerPair
from engine.training.presets import Preset, row_length
from engine.training.tokenizer import END_OF_TEXT_ID, IM_END_ID

# A chat answer ends with its turn, a plain text with the end of text.
EOS_IDS = [IM_END_ID, END_OF_TEXT_ID]


def build_verifier(preset: Preset, seed: int) -> Any:
    """A fresh model; the output projections start small, so that each layer starts as a no-op."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=preset.vocab_size,
        hidden_size=preset.hidden_size,
        intermediate_size=preset.intermediate_size,
        num_hidden_layers=preset.num_layers,
        num_attention_heads=preset.num_heads,
        num_key_value_heads=preset.num_kv_heads,
        head_dim=preset.head_dim,
        max_position_embeddings=preset.max_length,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS_IDS,
        pad_token_id=END_OF_TEXT_ID,
    )
    model = Qwen3ForCausalLM(config)
    for layer in model.model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


class VerifierTask:
    """Next-token cross-entropy over packed rows."""

    def __init__(self, model: Any, reader: RowReader, preset: Preset, device: torch.device) -> None:
        self.model, self.reader, self.preset, self.device = model, reader, preset, device
        plain = self._cross_entropy
        self._loss = torch.compile(plain) if device.type == "cuda" else plain

    def loss(self, share: float) -> tuple[Tensor, int]:
        length = row_length(share, self.preset.max_length)
        rows = max(1, self.preset.tokens_a_step // length)
        tokens = self.reader.batch(rows, length + 1).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return self._loss(tokens), rows * length

    def state(self) -> dict[str, Any]:
        return dict(self.reader.state)

    def restore(self, state: dict[str, Any]) -> None:
        self.reader.restore(state)

    def _cross_entropy(self, tokens: Tensor) -> Tensor:
        # from rows one token longer than what is predicted
        hidden = self.model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        logits = self.model.lm_head(hidden)
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def train_verifier(
    preset: Preset,
    reader: RowReader,
    budget: Budget,
    folder: Path,
    seed: int,
    device: torch.device,
    stop_after: int | None = None,
) -> tuple[Any, Progress]:
    """Train, or go on training, the verifier of this folder."""
    model = build_verifier(preset, seed).to(device)
    task = VerifierTask(model, reader, preset, device)
    optimizer = OptimizerPair(model, preset.muon_lr, preset.adam_lr)
    progress = Fit(task, optimizer, budget, folder).run(stop_after)
    return model, progress


def save_verifier(model: Any, folder: Path) -> None:
    """Write the model in Hugging Face format, bfloat16 on disk; the model itself stays as it is."""
    copied: Any = Qwen3ForCausalLM(model.config)
    copied.load_state_dict(model.state_dict())
    stops = {"eos_token_id": EOS_IDS, "pad_token_id": END_OF_TEXT_ID}
    copied.generation_config = GenerationConfig.from_dict(stops)
    copied.to(torch.bfloat16).save_pretrained(folder)
