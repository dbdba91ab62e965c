"""The training command end to end on a generated corpus: small, but every stage for real."""

import json
import lzma
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.models.dflash import load_drafter
from engine.training import cli
from engine.training.acceptance import write_texts
from engine.training.compare import Comparison, Variant, comparison_section
from engine.training.corpus import Corpus, RowReader, load_corpus
from engine.training.documents import read_documents
from engine.training.drafter import DrafterRecipe, drafter_config
from engine.training.frozen_verifier import FrozenVerifier
from engine.training.held_out import held_out_prompts
from engine.training.loop import Budget
from engine.training.optimizer import learning_rate_factor, orthogonal
from engine.training.presets import PRESETS, row_length
from engine.training.rollouts import continue_batch, load_rollouts
from engine.training.rows import RowSource
from engine.training.tokenizer import STOP_IDS, load_tokenizer
from engine.training.verifier import build_verifier, train_verifier

NAMES = ("Ann", "Bob", "Cleo", "Dan")
FOODS = ("soup", "rice", "cake", "fish", "bread")


def generated_documents(count: int, seed: int) -> list[dict[str, Any]]:
    """Dialogues and stories with little to learn, so that a few steps learn some of it."""
    dice = random.Random(seed)
    documents: list[dict[str, Any]] = []
    for i in range(count):
        name, food, number = dice.choice(NAMES), dice.choice(FOODS), dice.randint(2, 9)
        ask = {"role": "user", "content": f"I am {name}. Bring {number} plates of {food}."}
        answer = {"role": "assistant", "content": f"Yes, {name}. {number} plates of {food} it is."}
        story = f"{name} likes {food}. {name} eats {number} plates of {food} every day."
        documents.append(
            {"text": story, "src": "story"}
            if i % 3 == 0
            else {"messages": [ask, answer], "src": "orders"}
        )
    return documents


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    train, heldout = folder / "train.jsonl.xz", folder / "heldout.jsonl"
    with lzma.open(train, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(d) + "\n" for d in generated_documents(200, 1))
    lines = [json.dumps(d) for d in generated_documents(12, 2)]
    heldout.write_text("\n".join(lines) + "\n", "utf-8")
    return train, heldout


@pytest.fixture(scope="module")
def trained(data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    train, heldout = map(str, data)
    arguments = ["all", "--data", train, "--heldout", heldout, "--out", str(out)]
    arguments += ["--preset", "tiny", "--device", "cpu", "--threads", "1", "--steps", "60"]
    arguments += ["--drafter-steps", "40", "--rollouts", "24", "--rollout-tokens", "16"]
    arguments += ["--diffusion-steps", "10"]
    cli.main(arguments)
    return out


def losses(path: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in path.read_text("utf-8").splitlines()]


def test_both_models_learn(trained: Path) -> None:
    for stage in ("verifier", "drafter"):
        seen = losses(trained / "run" / stage / "log.jsonl")
        assert seen[-1] < seen[0] - 1


def test_plain_transformers_loads_the_verifier(trained: Path) -> None:
    folder = trained / "verifier"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == [2, 0]
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi, 42!"}], add_generation_prompt=True, return_dict=False
    )
    assert tokenizer.decode(ids) == "<|im_start|>user\nHi, 42!<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|mask|>",
    ]
    text = "Tabs\tand\n\n  lines, digits 1234, it's ünïcode 😀"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_drafter_loads_and_helps(trained: Path) -> None:
    assert load_drafter(trained / "drafter").config.target_layer_ids == (0, 1)
    figures = json.loads((trained / "evaluation.json").read_text("utf-8"))
    assert figures["perplexity"]["all"]["perplexity"] < 100
    for temperature in ("t0", "t1"):
        assert figures[f"mean_committed_{temperature}"]["all"]["mean"] > 1.0


def test_the_card_names_data_figures_and_answers(trained: Path) -> None:
    card = (trained / "README.md").read_text("utf-8")
    assert "| orders |" in card
    assert "`Qwen3ForCausalLM`" in card
    assert card.count("Prompt:") == 10
    assert str(trained) not in card
    for heading in ("Training", "Perplexity of the verifier on held-out text", "GGUF"):
        assert f"\n## {heading}\n" in card


def test_each_training_leaves_a_picture_of_its_loss(trained: Path) -> None:
    for stage in ("verifier", "drafter", "diffusion"):
        assert (trained / "run" / stage / "loss.png").stat().st_size > 5000


def test_drafters_are_compared_alike_and_finished_ones_are_kept(
    trained: Path, data: tuple[Path, Path]
) -> None:
    documents = list(read_documents([data[1]]))
    tokenizer = load_tokenizer(trained / "run" / "tokenizer")
    model = AutoModelForCausalLM.from_pretrained(trained / "verifier", dtype=torch.float32)
    verifier = FrozenVerifier(model)
    prompts = held_out_prompts(documents, tokenizer, 4, 0)
    made: list[str] = []

    def source() -> RowSource:
        made.append("source")
        return RowSource(load_rollouts(trained / "run" / "rollouts"), None, 256, 0)

    comparison = Comparison(
        verifier,
        drafter_config(PRESETS["tiny"]),
        DrafterRecipe(anchors=4),
        source,
        {t: write_texts(verifier, prompts, t, 8, STOP_IDS, 3) for t in (0.0, 1.0)},
        Budget(steps=4),
        seed=0,
        verifier_path=trained / "verifier",
    )
    variants = {"plain": Variant(), "chained": Variant("tv", "dpace", 4, True)}
    folder = trained / "run" / "compare"
    figures = comparison.run(variants, folder)
    assert comparison.run(variants, folder) == figures and len(made) == 2
    with pytest.raises(ValueError, match="other conditions"):
        replace(comparison, seed=1).run(variants, folder)
    assert figures["chained"]["num_parameters"] > figures["plain"]["num_parameters"]
    for row in figures.values():
        assert 1 <= row["coupled_t0"] == row["rejection_t0"] <= 4
    table = comparison_section(figures).splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| plain", "| chained"]


def test_a_killed_training_goes_on_as_if_it_had_not_been(trained: Path, tmp_path: Path) -> None:
    preset, corpus = PRESETS["tiny"], load_corpus(trained / "run" / "corpus")

    def train(folder: Path, stop_after: int | None) -> Any:
        reader = RowReader(corpus, {}, seed=5)
        budget, device = Budget(steps=20), torch.device("cpu")
        return train_verifier(preset, reader, budget, folder, 5, device, stop_after)[0]

    straight = train(tmp_path / "straight", None)
    train(tmp_path / "killed", 13)
    resumed = train(tmp_path / "killed", None)
    for name, weight in straight.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    assert losses(tmp_path / "straight" / "log.jsonl") == losses(tmp_path / "killed" / "log.jsonl")


def test_batched_decoding_equals_one_row_at_a_time() -> None:
    model = build_verifier(PRESETS["tiny"], 0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    verifier = FrozenVerifier(model)
    prompts = [[5, 6, 7, 8, 9], [10], [11, 12, 13]]
    answers = continue_batch(verifier, prompts, 6, lambda _, logits: logits.argmax(-1), frozenset())
    for prompt, answer in zip(prompts, answers, strict=True):
        read = list(prompt)
        for token in answer:
            assert model(torch.tensor([read])).logits[0, -1].argmax().item() == token
            read.append(token)


def corpus_of(lengths: list[int]) -> Corpus:
    """Document i is the number i, repeated."""
    tokens = np.repeat(np.arange(len(lengths)), lengths).astype(np.uint16)
    sources = ["even" if i % 2 == 0 else "odd" for i in range(len(lengths))]
    return Corpus(tokens, np.cumsum([0, *lengths]), sources)


def test_rows_begin_with_a_document_and_weights_rule_how_often() -> None:
    reader = RowReader(corpus_of([4] * 40), {"even": 0.0, "odd": 2.0}, seed=1)
    rows = reader.batch(10, 16)
    assert reader.state == {"epoch": 0, "cursor": 40}
    assert (rows % 2 == 1).all()
    assert torch.equal(rows.flatten().bincount(minlength=40)[1::2], torch.full((20,), 8))


def test_a_reader_goes_on_where_it_was() -> None:
    first, second = (RowReader(corpus_of([3, 5, 7, 2]), {}, seed=3) for _ in range(2))
    first.batch(9, 8)
    second.restore(first.state)
    assert torch.equal(first.batch(4, 8), second.batch(4, 8))


def test_an_update_is_orthogonal_for_wide_and_tall() -> None:
    torch.manual_seed(0)
    for rows, columns in ((16, 48), (48, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(3, rows, columns)))
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_the_schedule_ends_at_zero_with_long_rows() -> None:
    assert learning_rate_factor(0.2) == 1.0
    assert learning_rate_factor(1.0) == 0.0
    assert [row_length(s, 2048) for s in (0.0, 0.6, 0.99)] == [256, 512, 1024]


def test_options_that_make_no_sense_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["all", "--out", "x", "--weights", "star"])
    assert "expected SOURCE=WEIGHT" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["eval", "--out", "x"])
    assert "--heldout" in capsys.readouterr().err
