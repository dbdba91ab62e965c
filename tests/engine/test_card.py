"""The model card tells what there is, leaves out what there is not; its code runs as printed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.training import card_run, convert_drafter
from engine.training.card import SECTIONS, write_card
from engine.training.card_answers import answers
from engine.training.card_figures import committed, cost, perplexity, perplexity_by_position
from engine.training.card_loading import loading
from engine.training.documents import Document
from engine.training.tokenizer import save_tokenizer, train_tokenizer
from engine.training.trained import Trained, load_trained
from tests.engine.tiny_models import VOCAB_SIZE, tiny_qwen3

CPU = torch.device("cpu")
WEIGHTS = Path(__file__).parents[2] / "engine" / "weights"
FIGURES = {
    "perplexity": {
        "all": {"num_tokens": 7000, "perplexity": 5.123},
        "star": {"num_tokens": 3000, "perplexity": 4.5},
    },
    "perplexity_by_position": {"512 to 1,023": {"num_tokens": 900, "perplexity": 4.25}},
    "mean_committed_t0": {
        "all": {"num_verifies": 9, "mean": 3.21},
        "star": {"num_verifies": 4, "mean": 4.0},
    },
    "cost": {"draft_ms": 0.5, "verify_ms": 2.0},
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which nothing but a verifier has been made."""
    folder = tmp_path_factory.mktemp("out")
    tiny_qwen3().save_pretrained(folder / "verifier")
    documents = [Document("x", "Once upon a time there was a table for two in the park.")]
    tokenizer = train_tokenizer(documents, VOCAB_SIZE, {})
    save_tokenizer(tokenizer, folder / "verifier", 256)
    return folder


def with_figures(out: Path, target: Path, figures: dict[str, Any]) -> Trained:
    (target / "evaluation.json").write_text(json.dumps(figures), "utf-8")
    (target / "verifier").symlink_to(out / "verifier")
    return load_trained(target, CPU)


def test_a_verifier_alone_has_a_card_of_what_it_is_and_answers(out: Path) -> None:
    write_card(load_trained(out, CPU))
    card = (out / "README.md").read_text("utf-8")
    headings = re.findall("^## (.*)", card, re.MULTILINE)
    assert headings == [
        "Loading with transformers",
        "GGUF",
        "What they cannot do",
        "Ten prompts, at temperature 0, at most 96 tokens",
    ]
    assert "drafter" not in card.replace("convert-drafter", "")
    assert card.count("Prompt:") == 10
    assert max(map(len, card.splitlines())) <= 120


def test_figures_appear_where_they_were_measured(out: Path, tmp_path: Path) -> None:
    trained = with_figures(out, tmp_path, FIGURES)
    assert "| star | 3,000 | 4.50 |\n| all | 7,000 | 5.12 |" in perplexity(trained)
    assert "| 512 to 1,023 | 900 | 4.25 |" in perplexity_by_position(trained)
    assert "| source | T = 0 |" in committed(trained)
    assert "| star | 4.00 |\n| all | 3.21 |" in committed(trained)
    assert "2.00 ms" in cost(trained)
    assert " 25% of" in cost(trained)


def test_no_figure_is_no_section(out: Path, tmp_path: Path) -> None:
    trained = with_figures(out, tmp_path, {})
    told = [s.__name__ for s in SECTIONS if s is not answers and s(trained)]
    assert told == ["introduction", "models", "loading", "gguf", "limits"]


def test_commands_are_one_where_one_made_everything_and_show_no_folders() -> None:
    typed = "python -m engine.training {} --data /home/me/a.jsonl b/c.xz --out=/tmp/o/ --weights "
    same = {stage: typed.format(stage) + "snakes/x=2" for stage in ("verifier", "drafter")}
    assert card_run.commands(same) == [
        "python -m engine.training all --data a.jsonl b/c.xz --out=o --weights snakes/x=2"
    ]
    other = same | {"drafter": typed.format("drafter") + "snakes/x=3"}
    assert [line.split()[3] for line in card_run.commands(other)] == ["verifier", "drafter"]


def test_row_lengths_are_those_that_the_model_has_positions_for() -> None:
    assert card_run.row_lengths(2048) == (
        "256 up to 50% of the time, 512 up to 85% of the time, 1,024 after"
    )
    assert card_run.row_lengths(512) == "256 up to 50% of the time, 512 after"
    assert card_run.row_lengths(256) == "256"


def test_the_code_in_the_card_runs_on_the_shipped_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("verifier", "drafter"):
        (tmp_path / name).symlink_to(WEIGHTS / name)
    trained = load_trained(tmp_path, CPU)
    text = loading(trained)
    monkeypatch.chdir(tmp_path)
    (shell,) = re.findall(r"convert-drafter (.*)", text)
    convert_drafter.main(shell.split())
    names: dict[str, Any] = {}
    results = []
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, names)
        results.append(names["tokens"].tolist())
    (plain,), (drafted,) = results
    begun = names["prompt"]["input_ids"].shape[1] + 1
    # In bfloat16, as the code loads them, a near tie later on may turn out either way.
    assert len(plain) > begun
    assert plain[:begun] == drafted[:begun]
