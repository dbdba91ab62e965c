"""The examples, and the code printed in the documents, run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import engine.build
from benchmarks.server import RunningServer, served
from engine.build import EngineConfig, build_engine
from engine.generation.registry import load_strategies
from engine.generation.strategy import GenerationStrategy
from engine.request.sampling_params import SamplingParams

ROOT = Path(__file__).parent.parent
LIMIT_S = 150
# What follows repeats what stands here, whichever small model goes on with it.
PROMPT = "| a | b |\n| --- | --- |\n" + 3 * "| 1 | 2 |\n" + "| 1 |"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with served() as running:
        yield running


@pytest.fixture
def one_thread() -> Iterator[None]:
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


def test_the_chat_example_streams_an_answer_from_a_served_model(server: RunningServer) -> None:
    answer, _, usage = _run("stream_chat.py", f"{server.url}/v1").strip().rpartition("\n")
    assert answer.strip()
    assert int(usage.removeprefix("(").removesuffix(" tokens)")) > 0


def test_the_readme_asks_a_served_model_and_prints_its_answers(server: RunningServer) -> None:
    (code,) = _blocks(ROOT / "README.md")
    assert "http://127.0.0.1:8080/v1" in code, "the address of `make serve`"
    answer, *_ = _python("-c", code.replace("http://127.0.0.1:8080", server.url)).split("\n")
    assert answer.strip()


def test_the_offline_example_continues_each_of_its_prompts() -> None:
    blocks = _run("offline_generate.py").strip().split("\n\n")
    assert len([block for block in blocks if block.partition("|")[2].strip()]) == 2


def test_the_strategy_in_the_architecture_gives_the_tokens_of_ar_in_fewer_steps(
    monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    (code,) = _blocks(ROOT / "ARCHITECTURE.md")
    names: dict[str, Any] = {}
    exec(compile(code, "ARCHITECTURE.md", "exec"), names)

    def with_ours(*args: Any) -> dict[str, GenerationStrategy]:
        return {**load_strategies(*args), "copy_ahead": names["CopyAhead"](args[0])}

    monkeypatch.setattr(engine.build, "load_strategies", with_ours)
    built = build_engine(EngineConfig(self_test=False))
    texts, steps = {}, {}
    for mode in ("ar", "copy_ahead"):
        built.reset_stats()
        params = SamplingParams(max_tokens=48, temperature=0.0, ignore_eos=True)
        texts[mode] = built.generate([PROMPT], params, mode=mode)
        steps[mode] = built.metrics()["num_steps"]
    assert texts["copy_ahead"] == texts["ar"]
    assert steps["copy_ahead"] < steps["ar"]


def _blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def _run(name: str, *args: str) -> str:
    return _python(str(ROOT / "examples" / name), *args)


def _python(*args: str) -> str:
    """Run in a process of its own, as a reader would, and return what it prints."""
    # One thread: several that spin while they wait stand still where tests share the cores.
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *args],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        cwd=ROOT,
        env=environ,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
