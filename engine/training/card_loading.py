"""What a model card says of loading: plain transformers, and GGUF for llama.cpp."""

from engine.training.trained import Trained

VERIFIER = """\
## Loading with transformers

```python
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("verifier")
verifier = AutoModelForCausalLM.from_pretrained("verifier")
turn = {"role": "user", "content": "I would like a large latte with oat milk, please."}
prompt = tokenizer.apply_chat_template(
    [turn], add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
tokens = verifier.generate(**prompt, max_new_tokens=64, do_sample=False)
```
"""
DRAFTER = """\
The drafter is in the layout in which DFlash drafters are published. transformers 5.23 drafts with
it, one prompt at a time, once it is converted:

```sh
dfastllm convert-drafter drafter drafter-hf --to transformers
```

```python
drafter = AutoModel.from_pretrained("drafter-hf")
tokens = verifier.generate(
    **prompt,
    max_new_tokens=64,
    do_sample=False,
    assistant_model=drafter,
    speculation_type="dflash",
)
```
"""
HEADS = """\
`drafter/heads.safetensors` holds a Markov head, which this server alone reads: elsewhere the
drafter is used without it, and fewer of its tokens are accepted.
"""
DIFFUSION = """\
`AutoModelForCausalLM.from_pretrained("diffusion")` loads the diffusion model as the causal model
that it also is. To denoise, the rows of a block must see each other, which is for the caller to
mask; `engine/training/denoise.py` is a reference in a hundred lines.
"""
GGUF = """\
## GGUF

llama.cpp's converter knows a tokenizer by the ids it makes of a test text, so it refuses every new
vocabulary ("BPE pre-tokenizer was not recognized"). This one splits text as Qwen2's does. A line in
a copy of llama.cpp that is kept for this says so:

```sh
sed -i 's/^        if res is None:/        res = res or "qwen2"\\n&/' conversion/base.py
python convert_hf_to_gguf.py VERIFIER --outfile verifier.gguf --outtype f32
```
"""
GGUF_DRAFTER = """\
```sh
python convert_hf_to_gguf.py DRAFTER --target-model-dir VERIFIER --outfile drafter.gguf
llama-server -m verifier.gguf -md drafter.gguf --spec-type draft-dflash --spec-draft-n-max {masks}
```

`DRAFTER` is the folder as it is here: the form for transformers is refused. Served so, the pair
wrote the verifier's text; the Markov head is left out (`benchmarks/peers` says how it can be kept).
"""
GGUF_TRIED = """\
Tried with commit 0c1e570 of llama.cpp, whose whole source is in llama-cpp-python 0.3.36 on PyPI, in
a Python with torch, transformers and sentencepiece; a converted verifier wrote the same greedy text
in llama.cpp as in transformers.
"""
GGUF_DIFFUSION = """\
The diffusion model converts as the verifier does, and is then a causal model: llama.cpp knows no
block diffusion of this form.
"""


def loading(trained: Trained) -> str:
    parts = [VERIFIER]
    if trained.drafter is not None:
        parts.append(DRAFTER)
        if trained.drafter.config.markov_rank:
            parts.append(HEADS)
    if trained.diffusion is not None:
        parts.append(DIFFUSION)
    return "\n".join(parts)


def gguf(trained: Trained) -> str:
    parts = [GGUF]
    if trained.drafter is not None:
        parts.append(GGUF_DRAFTER.format(masks=trained.drafter.config.block_size - 1))
    parts.append(GGUF_TRIED)
    if trained.diffusion is not None:
        parts.append(GGUF_DIFFUSION)
    return "\n".join(parts)
