"""Infilling: the diffusion model writes what stands between given texts, here in two holes."""

from engine import GenerationOptions, SamplingParams, build_engine

engine = build_engine()
before, between, after = "Once upon a time, there was a ", " named Max. Max liked to ", " all day."
suffixes = tuple(tuple(engine.tokenizer.encode(text)) for text in (between, after))
options = GenerationOptions(suffixes=suffixes)
params = SamplingParams(max_tokens=12, temperature=0.0)
(done,) = engine.complete([before], params, mode="diffusion", options=options)
first, second = done.summary.hole_lengths
holes = (
    engine.tokenizer.decode(done.token_ids[:first]),
    engine.tokenizer.decode(done.token_ids[-second:]),
)
print(f"{before}[{holes[0]}]{between}[{holes[1]}]{after}")
