"""The evaluator counts the rounds that the engine runs: equal numbers, sequence by sequence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from engine.build import EMBEDDED, EngineConfig, build_engine
from engine.dfastllm_engine import DFastLLMEngine
from engine.models.dflash import load_drafter
from engine.request.sampling_params import SamplingParams
from engine.training import eval_drafter
from engine.training.acceptance import (
    COUPLED,
    REJECTION,
    Text,
    acceptance_tables,
    accepted_drafts,
    write_texts,
)
from engine.training.drafts import DFlashProposer, Proposer
from engine.training.frozen_verifier import FrozenVerifier
from engine.training.occupancy import Acceptance, expected_rounds
from tests.engine.engines import Ask, TinyModels, make_engine, run_all, tokens

Prompts = list[tuple[str, list[int]]]


@dataclass(frozen=True)
class Pair:
    """The same models twice: in a real engine, and as an evaluation holds them."""

    engine: DFastLLMEngine
    verifier: FrozenVerifier
    proposer: Proposer
    prompts: Prompts

    def texts(self, temperature: float, max_tokens: int) -> list[Text]:
        stop, beyond = self.engine.tokenizer.eos_token_ids, self.proposer.num_drafts
        return write_texts(self.verifier, self.prompts, temperature, max_tokens, stop, beyond)


def make_pair(
    engine: DFastLLMEngine, verifier_path: Path, drafter_path: Path, prompts: Prompts
) -> Pair:
    model = AutoModelForCausalLM.from_pretrained(verifier_path, dtype=torch.float32)
    verifier = FrozenVerifier(model)
    return Pair(engine, verifier, DFlashProposer(load_drafter(drafter_path), verifier), prompts)


@pytest.fixture(scope="module")
def tiny(models: TinyModels) -> Pair:
    prompts = [(f"source {i % 2}", tokens(3 + 4 * i, i)) for i in range(4)]
    return make_pair(make_engine(models), models.verifier_path, models.drafter_path, prompts)


@pytest.fixture(scope="module")
def embedded() -> Pair:
    engine = build_engine(EngineConfig(device="cpu", dtype="float32"))
    turns = ("I'd like a large latte with oat milk, please.", "What is 12 * (4 + 3)?")
    chats = [[{"role": "user", "content": turn}] for turn in turns]
    prompts = [("chat", engine.tokenizer.apply_chat_template(chat)) for chat in chats]
    prompts.append(("story", engine.tokenizer.encode("Once upon a time, there was a")))
    return make_pair(engine, EMBEDDED / "verifier", EMBEDDED / "drafter", prompts)


def served(pair: Pair, texts: list[Text], length: int) -> list[tuple[list[int], int, int, int]]:
    """What the engine says of each: its output, verify steps, drafted and accepted tokens."""
    pair.engine.reset_stats()
    asks = []
    for text in texts:
        params = SamplingParams(
            seed=text.seed, temperature=text.temperature, max_tokens=text.max_tokens
        )
        asks.append(Ask(text.prompt, params, mode="deer", draft_length=length))
    found = []
    for result in run_all(pair.engine, asks):
        assert result.summary is not None
        histogram = result.summary.acceptance_histogram
        accepted = sum(j * count for j, count in enumerate(histogram))
        drafted = result.summary.num_draft_tokens
        found.append((result.token_ids, sum(histogram), drafted, accepted))
    return found


@pytest.mark.parametrize(
    ("name", "temperature"), [("tiny", 0.8), ("embedded", 0.0), ("embedded", 0.8)]
)
def test_the_engine_runs_the_rounds_that_the_evaluator_counts(
    request: pytest.FixtureRequest, name: str, temperature: float
) -> None:
    pair: Pair = request.getfixturevalue(name)
    texts = pair.texts(temperature, 32)
    tables = {
        text.seed: table[COUPLED]
        for text, table in acceptance_tables(pair.verifier, pair.proposer, texts, [COUPLED])
    }
    for length in (2, pair.proposer.num_drafts):
        counted = []
        for text in texts:
            rounds = expected_rounds(tables[text.seed], text.draft_lengths(length))
            numbers = (rounds.num_verifies, rounds.num_drafted, rounds.num_accepted)
            counted.append((text.outputs, *numbers))
        assert served(pair, texts, length) == counted
        total = sum(accepted for *_, accepted in counted)
        assert 0 < total < sum(drafted for *_, drafted, _ in counted), "it proves nothing"


def test_the_engines_own_statistics_are_the_evaluators_totals(embedded: Pair) -> None:
    texts = embedded.texts(0.0, 40)
    assert any(text.num_outputs < text.max_tokens for text in texts), "no answer ends by itself"
    found = accepted_drafts(embedded.verifier, embedded.proposer, texts, [COUPLED], [7])
    total = found[COUPLED][7]["all"]
    served(embedded, texts, 7)
    live = embedded.engine.metrics()
    assert live["deer_num_verify_steps"] == total.num_verifies
    assert live["deer_num_draft_tokens"] == total.num_drafted
    assert live["deer_num_accepted_tokens"] == total.num_accepted
    assert total.num_committed == sum(text.num_outputs - 1 for text in texts)


def rates(found: Acceptance) -> list[float]:
    return [found.num_verifies, *found.passed.tolist()]


def test_at_temperature_0_both_rules_are_one(tiny: Pair) -> None:
    texts = tiny.texts(0.0, 24)
    found = accepted_drafts(tiny.verifier, tiny.proposer, texts)
    for length, by_source in found[COUPLED].items():
        assert rates(by_source["all"]) == rates(found[REJECTION][length]["all"])
    # And so is the ratio itself as the temperature falls.
    cold = [replace(text, temperature=1e-4) for text in texts]
    near = accepted_drafts(tiny.verifier, tiny.proposer, cold, [REJECTION], [3])
    expected = rates(found[COUPLED][3]["all"])
    assert rates(near[REJECTION][3]["all"]) == pytest.approx(expected, abs=1e-6)


def test_a_drafter_that_is_the_verifier_is_refused_nothing(tiny: Pair) -> None:
    """min(1, q / p) is 1 throughout, and with the same noise the drafts are the same too."""
    texts, perfect = tiny.texts(1.0, 24), PerfectDrafts(tiny.verifier)
    found = accepted_drafts(tiny.verifier, perfect, texts, lengths=[0, 3])
    for by_length in found.values():
        assert by_length[0]["all"].mean_committed == 1
        assert by_length[3]["all"].by_position == pytest.approx([1, 1, 1], abs=1e-4)


class PerfectDrafts:
    """A drafter that has read the text: a second kind, which takes no tap and has its own head."""

    num_drafts = 3
    taps = ()
    markov: Callable[[Tensor], Tensor] | None = None

    def __init__(self, verifier: FrozenVerifier) -> None:
        self.head = verifier.target_logits
        self._verifier = verifier

    def blocks(self, reading: object, anchors: Tensor) -> Tensor:
        hidden: Tensor = reading.hidden  # type: ignore[attr-defined]
        places = anchors[..., None] + torch.arange(self.num_drafts)
        rows = torch.arange(len(anchors))[:, None, None]
        return hidden[rows, places.clamp(max=hidden.shape[1] - 1)]


def test_a_markov_head_is_asked_for_the_token_before_each(tiny: Pair) -> None:
    """A head that names the next token outright: token + 1 follows, from the anchor on."""
    vocab_size = tiny.verifier.config.vocab_size
    stream = [*range(20, 28), 50, 51, 52]
    text = Text("", [5, 6], stream, len(stream), len(stream), seed=0, temperature=0.0)
    chained = PerfectDrafts(tiny.verifier)
    chained.markov = lambda ids: 1e4 * torch.eye(vocab_size)[(ids + 1) % vocab_size]
    for temperature in (0.0, 1.0):
        text = replace(text, temperature=temperature)
        [(_, tables)] = acceptance_tables(tiny.verifier, chained, [text], [COUPLED, REJECTION])
        follows = [b == a + 1 for a, b in pairwise(stream)]
        coupled, ratio = tables[COUPLED], tables[REJECTION]
        for n in range(len(stream) - 1):
            run = follows[n : n + 3]
            assert coupled[n].cumprod().sum() == np.cumprod(run).sum()
            if temperature:
                assert ratio[n][: len(run)].round().tolist() == run


def test_the_command_writes_tables_and_json(
    tmp_path: Path, models: TinyModels, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "held.jsonl", tmp_path / "figures.json"
    lines = [{"text": f"{word} went home and slept.", "src": word} for word in ("Ann", "Bob")]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    pair = ["--verifier", str(models.verifier_path), "--drafter", str(models.drafter_path)]
    asked = ["--data", str(data), "--prompts", "2", "--rollout-tokens", "8", "--device", "cpu"]
    eval_drafter.main([*pair, *asked, "--threads", "1", "--lengths", "0", "5", "--json", str(out)])
    shown = capsys.readouterr().out
    assert "| draft length | coupled (shared noise) | rejection (p/q) |" in shown
    assert "| Ann | " in shown
    found = json.loads(out.read_text("utf-8"))
    assert found["acceptance"]["coupled"]["0"]["0"]["all"]["mean_committed"] == 1
    assert found["acceptance"]["rejection"]["1"]["5"]["Bob"]["num_committed"] == 7
    assert found["cost"]["draft_share"] == found["cost"]["draft_ms"] / found["cost"]["verify_ms"]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--lengths", "9"], "--lengths: this drafter drafts 0 to 5 tokens"),
        (["--drafter", "/nowhere"], "--drafter: "),
        (["--data", "/nowhere.jsonl"], "--data: "),
    ],
)
def test_what_cannot_be_meant_is_refused(
    flags: list[str],
    complaint: str,
    tmp_path: Path,
    models: TinyModels,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "held.jsonl"
    data.write_text('{"text": "Once upon a time."}\n', "utf-8")
    pair = ["--verifier", str(models.verifier_path), "--drafter", str(models.drafter_path)]
    asked = ["--data", str(data), "--device", "cpu", "--threads", "1", "--no-cost"]
    with pytest.raises(SystemExit) as ended:
        eval_drafter.main([*pair, *asked, *flags])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err
