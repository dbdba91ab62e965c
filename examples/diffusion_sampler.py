"""DiffusionSampler: which masks a denoising step reveals, and the same rules for a whole text."""

import torch

from engine import DiffusionSampler, GenerationOptions, SamplingParams, SemiAREngine

logits = torch.tensor([[9.0, 0, 0], [2, 1, 0], [5, 0, 0], [1, 1, 0]])  # four masks, three tokens
token_ids = logits.argmax(-1)
for rule in (DiffusionSampler(num_steps=2), DiffusionSampler(threshold=0.99)):
    revealed = rule(logits, token_ids, num_masks=[4], steps_done=[0])
    print(f"{rule}: {revealed.int().tolist()}")

engine = SemiAREngine()
params = SamplingParams(max_tokens=24, temperature=0.0)
for options in (GenerationOptions(denoising_steps=2), GenerationOptions(confidence_threshold=0.9)):
    engine.reset_stats()
    (text,) = engine.generate(["Lily and Max went to the park."], params, options=options)
    print(f"{DiffusionSampler.of(options)}: {text!r}, {engine.stats.tokens_per_forward:.2f}")
