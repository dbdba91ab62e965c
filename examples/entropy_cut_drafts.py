"""EntropyAwareDraftController at work: drafts are cut where their own logits are uncertain."""

from engine import EntropyConfig, HybridConfig, HybridEngine, SamplingParams

prompts = ["Once upon a time, there was a little dog named Max.", "One day, Lily went to the park."]
params = SamplingParams(max_tokens=64, temperature=0.0)

engine = HybridEngine(config=HybridConfig(entropy=EntropyConfig(low=0.5, high=2.5)))  # nats
for prompt, text in zip(prompts, engine.generate(prompts, params), strict=True):
    print(f"{prompt}|{text}\n")
stats = engine.engine.get_stats()
for name in ("num_draft_tokens", "num_accepted_tokens", "entropy_num_cut_tokens"):
    print(f"{name}: {stats[f'deer_{name}']:.0f}")
