"""EntropyAdaptiveController: how sure the last answers were decides how the next is drafted."""

import math

from engine import (
    EntropyAdaptiveController,
    EntropyConfig,
    GenerationOptions,
    SamplingParams,
    build_engine,
)

engine = build_engine()
controller = EntropyAdaptiveController(EntropyConfig(), max_draft_length=7, max_denoising_steps=4)
params = SamplingParams(max_tokens=24, temperature=0.0, logprobs=20)


def entropy(token):
    """In nats, of the 20 likeliest tokens at its place."""
    return -sum(math.exp(logprob) * logprob for _, _, logprob in token.top)


for prompt in ("| 1 | 2 |\n" * 6, "One day, Lily went to the park.", "Max was a big dog."):
    steps, length = advice = controller.recommend()
    options = GenerationOptions(draft_length=length, denoising_steps=steps)
    ids = engine.tokenizer.encode(prompt)
    mode, options = ("spec_diff", options) if advice.should_draft else ("ar", GenerationOptions())
    engine.add(engine.make_sequence("one", ids, params, mode=mode, options=options))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    print(f"{mode}, {advice}: {''.join(output.text for output in outputs)!r}")
    seen = [entropy(token) for output in outputs for token in output.logprobs or ()]
    for start in range(0, len(seen), 7):
        controller.update(seen[start : start + 7])
