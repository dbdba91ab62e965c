"""Every mode as a Python object: the same prompts, and what each of the engines counted."""

from engine import (
    APDDecoder,
    HybridConfig,
    HybridEngine,
    SamplingParams,
    SemiAREngine,
    SpecDiffEngine,
)

prompts = ["Once upon a time, there was a little dog named Max.", "One day, Lily went to the park."]
params = SamplingParams(max_tokens=32, temperature=0.0)

for kind in (HybridEngine, SpecDiffEngine, SemiAREngine, APDDecoder):
    engine = kind(config=HybridConfig(max_batch_size=4))  # kind(diffusion_model, ar_model, ...)
    for prompt, text in zip(prompts, engine.generate(prompts, params), strict=True):
        print(f"{kind.__name__}: {prompt}|{text}\n")
    print(f"{engine.stats.tokens_per_forward:.2f} tokens a forward, {engine.get_stats()}\n")
