"""`dfastllm train-drafter` on small checkpoints of several families, each saved and loaded anew."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from engine.build import EMBEDDED, EngineConfig, build_engine
from engine.models.causal_lm import CausalLM, UnsupportedModelError
from engine.request.sampling_params import SamplingParams
from engine.request.tokenizer import Tokenizer
from engine.training import own_rollouts, train_drafter
from engine.training.documents import Document, read_documents
from engine.training.drafter_run import batch_size
from engine.training.drafter_shape import default_layers, default_taps
from engine.training.frozen_verifier import FrozenVerifier
from engine.training.lessons import Lessons
from engine.training.own_verifier import OptionError, find_mask_token, load_own_verifier
from engine.training.rollouts import continue_batch, load_rollouts, save_rollouts
from tests.engine.engines import Ask, count_drafts, run_all
from tests.engine.tiny_models import SHAPE, tiny_drafter, tiny_llama
from tests.engine.tiny_tokenizers import make_byte_level

CPU = torch.device("cpu")
NUM_TOKENS = 267  # of the tokenizer; the models have rows for 512
SMALL = {k: v for k, v in SHAPE.items() if k != "head_dim"} | {"initializer_range": 0.06}


def qwen2() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**SMALL, tie_word_embeddings=True))


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SMALL))


def gemma2() -> PreTrainedModel:
    """Scaled embeddings, windows of 16 tokens in every other layer, soft caps that are felt."""
    own = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}
    own |= {"sliding_window": 16, "query_pre_attn_scalar": 16, "head_dim": 16}
    return Gemma2ForCausalLM(Gemma2Config(**{**SMALL, "initializer_range": 0.2}, **own))


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": llama,
    "qwen2": qwen2,
    "gemma2": gemma2,
}


def save(folder: Path, make: Callable[[], PreTrainedModel], **tokenizer: Any) -> Path:
    torch.manual_seed(1)
    make().save_pretrained(folder)
    return make_byte_level(folder, **tokenizer)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few dialogues, of which one is held back."""
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    ask = ("hello world", "hell", "a question", "another one")
    chats = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": "hello " + text}]
        for text in ask
    ]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), "utf-8")
    return path


def arguments(verifier: Path, data: Path, out: Path, *more: str) -> list[str]:
    given = ["--verifier", str(verifier), "--data", str(data), "--out", str(out)]
    given += ["--rollouts", "12", "--rollout-tokens", "24", "--block-size", "4", "--threads", "1"]
    return [*given, "--device", "cpu", *more]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_drafter_of_a_strangers_model_is_served_and_accepted(
    family: str, data: Path, tmp_path: Path
) -> None:
    verifier, out = save(tmp_path / family, FAMILIES[family]), tmp_path / "drafter"
    train_drafter.main(arguments(verifier, data, out, "--steps", "60"))
    figures = json.loads((out / "run" / "evaluation.json").read_text("utf-8"))
    # The one prompt held back may be answered greedily by what no rollout has in it.
    assert max(figures["mean_committed"].values()) > 1.2

    engine = build_engine(EngineConfig(str(verifier), str(out), device="cpu"))
    prompt = engine.tokenizer.apply_chat_template([{"role": "user", "content": "hello world"}])
    params = [
        SamplingParams(max_tokens=32, temperature=t, seed=s) for t, s in ((0, 0), (1, 5), (1, 6))
    ]
    plain = run_all(engine, [Ask(prompt, p, "ar") for p in params])
    drafted = run_all(engine, [Ask(prompt, p, "deer", draft_length=3) for p in params])
    assert [r.token_ids for r in drafted] == [r.token_ids for r in plain]
    assert min(count_drafts(drafted)) > 0


def test_a_run_that_is_started_again_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verifier, out = save(tmp_path / "verifier", llama), tmp_path / "drafter"
    train_drafter.main(arguments(verifier, data, out, "--steps", "10"))

    def never(*_: object) -> None:
        raise AssertionError("finished rollouts were made again")

    monkeypatch.setattr(own_rollouts, "roll_out", never)
    (out / "run" / "rollouts" / "rollouts.npz").unlink()  # as if killed before they were joined
    train_drafter.main(arguments(verifier, data, out, "--steps", "20"))
    log = (out / "run" / "drafter" / "log.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in log] == [10, 20]

    with pytest.raises(SystemExit):
        train_drafter.main(arguments(verifier, data, out, "--steps", "20", "--layers", "2"))
    assert f"--out {out} was begun with other options (drafter, shape)" in capsys.readouterr().err


TRANSFORMED = {
    "gemma2": gemma2,
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=8.0)),
}


@pytest.mark.parametrize("family", TRANSFORMED)
def test_target_logits_are_the_models_own_and_a_draft_sees_what_is_served(family: str) -> None:
    model = TRANSFORMED[family]().eval()
    verifier, ids = FrozenVerifier(model), torch.arange(20)[None]
    reading = verifier.read(ids, (0, 2))
    with torch.no_grad():
        own = model(input_ids=ids).logits
    assert torch.allclose(verifier.target_logits(reading.hidden), own, atol=1e-5)
    served = CausalLM(model)
    assert torch.equal(verifier.embed(ids[0]), served.embed(ids[0]))
    assert torch.equal(verifier.head(reading.hidden[0]), served.logits(reading.hidden[0]))
    assert not torch.allclose(verifier.head(reading.hidden), own, atol=1e-2)


def test_the_last_layer_is_tapped_before_the_final_norm_as_the_server_does() -> None:
    model = tiny_llama()
    reading = FrozenVerifier(model).read(torch.arange(9)[None], (2,))
    assert torch.allclose(model.model.norm(reading.tapped), reading.hidden, atol=1e-5)


def test_rollouts_of_unequal_prompts_longer_than_a_sliding_window() -> None:
    torch.manual_seed(3)
    model = gemma2().eval()
    prompts = [list(range(30)), [7], list(range(40, 52))]
    greedy = continue_batch(
        FrozenVerifier(model), prompts, 5, lambda _, logits: logits.argmax(-1), frozenset()
    )
    for prompt, answer in zip(prompts, greedy, strict=True):
        read = prompt + answer
        logits = model(torch.tensor([read])).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == answer


class Surprising(LlamaForCausalLM):
    """Makes something of its logits that no field of its configuration tells."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits + torch.arange(out.logits.shape[-1]) / 100
        return out


def test_a_verifier_with_unknown_logits_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="another distribution than the model's"):
        FrozenVerifier(Surprising(LlamaConfig(**SMALL)))


def test_what_the_server_cannot_run_is_refused_before_any_training(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2}
    verifier = save(tmp_path / "recurrent", lambda: MambaForCausalLM(MambaConfig(**sizes)))
    with pytest.raises(SystemExit):
        train_drafter.main(arguments(verifier, data, tmp_path / "out"))
    assert "--verifier: model_type mamba is not supported" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_mask_token_is_the_tokenizers_or_a_spare_row_or_asked_for(tmp_path: Path) -> None:
    own = load_own_verifier(str(save(tmp_path / "own", llama)), CPU)
    assert find_mask_token(own, None) == own.tokenizer.mask_token_id
    assert find_mask_token(own, 300) == 300
    own.tokenizer.mask_token_id = None
    table: Tensor = own.frozen.model.get_input_embeddings().weight
    table[NUM_TOKENS] = 0  # a mask of nothing could not ask for anything
    assert find_mask_token(own, None) == NUM_TOKENS + 1
    table[NUM_TOKENS:] = 0
    with pytest.raises(OptionError, match="--mask-token-id is needed"):
        find_mask_token(own, None)
    for useless in (NUM_TOKENS, 512, -1):
        with pytest.raises(OptionError, match=f"--mask-token-id {useless}"):
            find_mask_token(own, useless)


def test_token_ids_beyond_two_bytes_come_back(tmp_path: Path) -> None:
    for name, largest, width in (("small", 65_535, 2), ("large", 262_143, 4)):
        save_rollouts([[1, largest]], [[2, largest, 3]], tmp_path / name)
        rollouts = load_rollouts(tmp_path / name)
        assert rollouts.tokens.itemsize == width
        assert rollouts.pairs() == ([[1, largest]], [[2, largest, 3]])
        tokens, first, end = rollouts.batch(1, np.random.default_rng(0))
        assert (tokens.tolist(), first.tolist(), end.tolist()) == (
            [[1, largest, 2, largest, 3]],
            [2],
            [5],
        )


def test_a_large_vocabulary_makes_the_step_smaller() -> None:
    config = tiny_drafter().config
    assert batch_size(config, CPU) == (16, 32)
    large = type(config)(**{**vars(config), "vocab_size": 262_144, "block_size": 8})
    rows, anchors = batch_size(large, CPU)
    assert 1 <= rows * anchors * 7 * 262_144 <= 1 << 25


def test_drafter_and_taps_follow_the_verifiers_depth() -> None:
    assert [default_layers(n) for n in (1, 8, 28, 36, 80)] == [1, 1, 4, 4, 5]
    assert default_taps(36) == (1, 9, 17, 25, 33)
    assert [default_taps(n) for n in (1, 2, 3, 8)] == [(0,), (0, 1), (0, 1, 2), (1, 3, 5)]


def test_prompts_are_what_the_server_would_read(tmp_path: Path) -> None:
    own = load_own_verifier(str(save(tmp_path / "own", llama)), CPU)
    chat = Document("chat", messages=(("user", "hello"), ("assistant", "world")))
    text = Document("text", "hello world, and more of it")
    lessons = Lessons(own.tokenizer, max_prompt=64)
    [prompt] = lessons.prompts([chat], 1, seed=0)
    assert prompt == own.tokenizer.apply_chat_template([{"role": "user", "content": "hello"}])
    unanswered = Document("chat", messages=chat.messages[:1])
    assert lessons.prompts([unanswered], 2, seed=0) == [prompt, prompt]
    whole = own.tokenizer.encode(text.text)
    for head in lessons.prompts([text], 5, seed=0):
        assert head == whole[: len(head)]
    learnt, held = lessons.hold_back([chat, text], 8, seed=0)
    assert (len(learnt), len(held)) == (1, 1)


def test_data_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    silent = save(tmp_path / "silent", llama, chat_template=None)
    own = load_own_verifier(str(silent), CPU)
    chats = [Document("chat", messages=(("user", "hello"), ("assistant", "world")))] * 2
    with pytest.raises(OptionError, match=r"--data: .*no chat template"):
        Lessons(own.tokenizer, 64).hold_back(chats, 1, 0)
    with pytest.raises(OptionError, match="at least two documents"):
        Lessons(own.tokenizer, 64).hold_back(chats[:1], 1, 0)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "good"}\n{"txt": "bad"}\n', "utf-8")
    with pytest.raises(ValueError, match=r"broken.jsonl, line 2 is no document"):
        list(read_documents([broken]))


def test_a_plain_text_is_cut_between_paragraphs(tmp_path: Path) -> None:
    paragraphs = ["word " * 90 + f"end {i}" for i in range(12)]
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(paragraphs), "utf-8")
    pieces = list(read_documents([path]))
    assert len(pieces) == 3
    assert "\n\n".join(piece.text for piece in pieces) == "\n\n".join(paragraphs)
    assert {piece.source for piece in pieces} == {"book"}


def test_a_text_without_empty_lines_is_cut_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("a line of some words\n" * 2000, "utf-8")
    pieces = [document.text for document in read_documents([path])]
    assert len(pieces) > 5
    assert "\n".join(pieces) == path.read_text("utf-8").strip()


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl.xz"
    path.write_bytes(lzma.compress(b'{"text": "one two three"}\n' * 500)[:-40])
    with pytest.raises(ValueError, match=r"cut\.jsonl\.xz is cut off or broken"):
        list(read_documents([path]))


def test_a_whole_dialogue_ends_where_it_ends() -> None:
    tokenizer = Tokenizer(EMBEDDED / "verifier")
    turns = (("user", "Hello."), ("assistant", "Hello to you."))
    (whole,) = Lessons(tokenizer, 64).texts([Document("a", messages=turns)], 1, 64)
    prompt = tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in turns])
    assert prompt[: len(whole)] == whole and len(prompt) > len(whole)
