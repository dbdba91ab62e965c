"""The loop itself: requests come and go while others run, and share the KV of equal beginnings."""

from engine import SamplingParams, build_engine

engine = build_engine()
batching = engine.batching  # a ContinuousBatchingEngine, with RequestBatcher and PrefixCache
story = engine.tokenizer.encode("Once upon a time, there was a little dog named Max. " * 4)

for number, mode in enumerate(("ar", "deer", "spec_diff", "semi_ar")):
    params = SamplingParams(max_tokens=24, seed=number)
    batching.add(engine.make_sequence(mode, story, params, mode=mode))
    for output in batching.step():  # those that came earlier go on meanwhile
        print(f"{output.sequence_id}: {output.text!r}")
while batching.has_work:
    for output in batching.step():
        print(f"{output.sequence_id}: {output.text!r} {output.finish_reason or ''}")
print(batching.get_stats(), batching.batcher.prefix_cache.stats.to_dict())
