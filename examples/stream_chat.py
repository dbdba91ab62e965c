"""Streams a chat through the OpenAI SDK: start `make serve`, then run this."""

import sys

from openai import OpenAI

base_url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080/v1"
client = OpenAI(base_url=base_url, api_key="none")  # or the server's VDIFF_API_KEY
# Models stay listed for a day after their last worker: take the one that came last.
model = max(client.models.list().data, key=lambda model: model.created).id

stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "I'd like to find a place to eat in San Jose."}],
    max_tokens=64,
    seed=1,
    stream=True,
    stream_options={"include_usage": True},
    extra_body={"mode": "deer"},  # or "ar": the same text, only slower
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    elif chunk.usage:
        print(f"\n({chunk.usage.completion_tokens} tokens)")
