"""The engine alone, without HTTP or Redis: continues a batch of prompts in this process."""

from engine import SamplingParams, build_engine

prompts = ["Once upon a time, there was a little dog named Max.", "One day, Lily went to the park."]
engine = build_engine()  # the models that ship with the package; or EngineConfig(model_path=...)
params = SamplingParams(max_tokens=48, temperature=0.7, seed=1)

for prompt, text in zip(prompts, engine.generate(prompts, params), strict=True):
    print(f"{prompt}|{text}\n")
